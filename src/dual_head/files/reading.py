"""Files that may be damaged, read: every failure is one error that names the file, what is wrong and the remedy.

A file may be cut, altered, of the wrong types, nested without end or made to do harm, and each library raises errors of
its own types.
"""

import ctypes
import errno
import json
import pickle  # for the name of its error alone
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dual_head.errors import DualHeadError

T = TypeVar("T", dict, list)

COPY = "Copy it again."
"""The remedy for a damaged file of a model."""
ANEW = "Choose another output, or add --restart to write it anew."
"""The remedy for a damaged record of a run that goes on."""

DEEPEST = 100
"""The deepest nesting of lists and mappings in a file of settings."""
MOST = 1_000_000
"""The most values in a file of settings; a value that YAML aliases repeat counts each time."""
LONGEST_REASON = 300  # characters
MODEL_PARTS = ("*config.json", "tokenizer.json", "*.safetensors.index.json", "*.safetensors")
"""Patterns of a model's files that are checked if loading the model fails."""


@contextmanager
def reading(problem: str, remedy: str, folder: str | Path | None = None) -> Iterator[None]:
    """Turn whatever the block raises into "PROBLEM: what is wrong. REMEDY"; the error of a full disk passes.

    folder: the model that the block reads; its first damaged file is named.
    """
    try:
        yield
    except (DualHeadError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a reader in Rust is not an Exception
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if isinstance(error, ImportError):  # no file is wrong: an option asks for what is not installed
            remedy, folder = "Install what is named, or leave out the option that needs it.", None
        damage = _damage(folder) if folder else None
        raise DualHeadError(f"{problem}: {damage or f'{reason(error)} {remedy}'}") from error


def reason(error: BaseException) -> str:
    """Describe an error in one sentence: its first line, or what its type means where the text says too little."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, KeyError) and " " not in str(error):
        text = f"it lacks {error}"
    else:
        prefix = f"{type(error).__name__}: " if isinstance(error, (IndexError, TypeError, AttributeError)) else ""
        text = next((words for kind, words in _KINDS.items() if isinstance(error, kind)), f"{prefix}{error}")
    text = (text.strip() or type(error).__name__).splitlines()[0].strip()
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _damage(folder: str | Path) -> str | None:
    """Name the first damaged file of a model, with what is wrong; None if all are whole."""
    from safetensors import safe_open

    for file in sorted(path for pattern in MODEL_PARTS for path in Path(folder).glob(pattern)):
        try:
            if file.suffix == ".safetensors":
                safe_open(file, "np")
            elif not isinstance(json_value(file.read_text(encoding="utf-8")), dict):
                raise ValueError("it is not a JSON object")
        except Exception as error:
            return f"its {file.name} is damaged ({reason(error).removesuffix('.')}). {COPY}"
    return None


_KINDS: dict[type[BaseException], str] = {
    RecursionError: "it is nested too deeply",
    pickle.UnpicklingError: "it is a pickle of more than numbers, which could run code: give safetensors",
    EOFError: "it ends too early",
    MemoryError: "it needs more memory than there is",
    UnicodeDecodeError: "it is not UTF-8 text",
    UnicodeEncodeError: "it holds half a character (a lone surrogate)",
    json.JSONDecodeError: "it is not whole JSON",
}


# ---- JSON and YAML -----------------------------------------------------------------------------------------


def json_value(
    text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None, *, halves: bool = False
) -> Any:
    """Parse JSON. halves: allow half a character (a lone surrogate), which no file can hold. Errors: ValueError."""
    try:
        value = json.loads(text, object_pairs_hook=hook)
        if not halves and _SURROGATES.search(text if isinstance(text, str) else text.decode("latin-1")):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(_KINDS[RecursionError]) from error
    return value


def read_json(file: str | Path, remedy: str, kind: type[T] = dict) -> T:
    """Read a file of one JSON object, or of a list. Errors: unreadable, cut, another type, too deep."""
    with reading(f"Cannot read '{file}'", remedy):
        value = json_value(Path(file).read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it is not a JSON {_NAMES[kind]}")
        _require_bounded(value)
        return value


_SURROGATES = re.compile(r"\\u[dD][89a-fA-F]")
_NAMES = {dict: "object", list: "list"}


def yaml_value(text: str) -> Any:
    """Parse YAML of plain values. Errors: ValueError, also for values that aliases make endless or huge."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(_KINDS[RecursionError]) from error
    except yaml.YAMLError as error:  # its text has several lines
        raise ValueError(" ".join(str(error).split())) from error
    _require_bounded(value)
    return value


def read_yaml(file: str | Path, remedy: str) -> Any:
    """Read a YAML file of plain values. Errors: unreadable, not YAML, too deep, or too large by its aliases."""
    with reading(f"Cannot read '{file}'", remedy):
        return yaml_value(Path(file).read_text(encoding="utf-8"))


def _require_bounded(value: Any) -> None:
    """Refuse values that take too long to copy, compare or show. Errors: ValueError of depth or of number."""
    stack, count = [(value, 0)], 0
    while stack:
        value, depth = stack.pop()
        count += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        if count > MOST:
            raise ValueError(f"it holds more than {MOST:,} values")
        if isinstance(value, dict):
            stack += ((part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, (list, tuple, set)):
            stack += ((part, depth + 1) for part in value)


# ---- code from elsewhere -----------------------------------------------------------------------------------


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block of Python code that runs longer; a call into C ends first."""
    stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
    thread, lock, running = ctypes.c_ulong(threading.get_ident()), threading.Lock(), True

    def expire() -> None:
        with lock:
            if running:
                stop(thread, ctypes.py_object(TimeoutError))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            running = False
        timer.cancel()
