"""What others wrote, read: whatever a reader raises is one error that names the file, what is wrong and the remedy.

A file may be cut, altered, of other types than it should hold, nested without end or made to do harm, and every
library that reads one raises errors of its own kinds. It knows files and Python values, and no model.
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
"""The remedy where a file of a model is damaged."""
ANEW = "Choose another output, or add --restart to write it anew."
"""The remedy where the record of a run that goes on is damaged."""

DEEPEST = 100
"""Levels of lists and mappings in a file of settings."""
MOST = 1_000_000
"""Values in a file of settings, each counted as often as aliases of YAML repeat it."""
LONGEST_REASON = 300  # characters
MODEL_PARTS = ("*config.json", "tokenizer.json", "*.safetensors.index.json", "*.safetensors")
"""Patterns of a model's files that are looked at where one of them cannot be read."""


@contextmanager
def reading(problem: str, remedy: str, folder: str | Path | None = None) -> Iterator[None]:
    """Refuse with "PROBLEM: what is wrong. REMEDY" whatever the block raises; a full disk stays what it is.

    folder: what the block reads of a model, where a file that is damaged is named.
    """
    try:
        yield
    except (DualHeadError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a reader written in Rust panics with one that is no Exception
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        damage = _damage(folder) if folder else None
        raise DualHeadError(f"{problem}: {damage or f'{reason(error)} {remedy}'}") from error


def reason(error: BaseException) -> str:
    """Say in one sentence what an error says, or what its kind means where it says nothing to a user."""
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror
    elif isinstance(error, KeyError) and " " not in str(error):
        said = f"it lacks {error}"
    else:
        said = next((words for kind, words in _KINDS.items() if isinstance(error, kind)), None)
        said = said or f"{_named(error)}{error}"
    said = (said.strip() or type(error).__name__).splitlines()[0].strip()
    said = said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]} ..."
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _damage(folder: str | Path) -> str | None:
    """Name the first of a model's files that is not whole, with what is wrong; None where none of them is."""
    from safetensors import safe_open

    for file in sorted(path for pattern in MODEL_PARTS for path in Path(folder).glob(pattern)):
        try:
            if file.suffix == ".safetensors":
                safe_open(file, "np")
            elif not isinstance(json_value(file.read_text(encoding="utf-8")), dict):
                raise ValueError("it holds no JSON object")
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


def _named(error: BaseException) -> str:
    """The kind of an error whose text alone says nothing of what was read."""
    return f"{type(error).__name__}: " if isinstance(error, (IndexError, TypeError, AttributeError)) else ""


# ---- JSON and YAML -----------------------------------------------------------------------------------------


def json_value(
    text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None, *, halves: bool = False
) -> Any:
    """Parse JSON; halves: with texts of half a character (a lone surrogate), which no file takes, as well.

    Errors: ValueError of whatever is wrong with it.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook)
        if not halves and _SURROGATES.search(text if isinstance(text, str) else text.decode("latin-1")):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(_KINDS[RecursionError]) from error
    return value


def read_json(file: str | Path, remedy: str, kind: type[T] = dict) -> T:
    """Read a file that holds one JSON object, or a list. Errors: unreadable, cut, another kind of value, too deep."""
    with reading(f"Cannot read '{file}'", remedy):
        value = json_value(Path(file).read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it holds no JSON {_NAMES[kind]}")
        _require_bounded(value)
        return value


_SURROGATES = re.compile(r"\\u[dD][89a-fA-F]")
_NAMES = {dict: "object", list: "list"}


def yaml_value(text: str) -> Any:
    """Parse YAML of plain values. Errors: ValueError of whatever is wrong, what aliases make endless or huge too."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(_KINDS[RecursionError]) from error
    except yaml.YAMLError as error:  # in many lines
        raise ValueError(" ".join(str(error).split())) from error
    _require_bounded(value)
    return value


def read_yaml(file: str | Path, remedy: str) -> Any:
    """Read a YAML file of plain values. Errors: unreadable, not YAML, too deep, or too large by its aliases."""
    with reading(f"Cannot read '{file}'", remedy):
        return yaml_value(Path(file).read_text(encoding="utf-8"))


def _require_bounded(value: Any) -> None:
    """Refuse values that whoever copies, compares or shows them would never be done with."""
    rest, count = [(value, 0)], 0
    while rest:
        value, depth = rest.pop()
        count += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        if count > MOST:
            raise ValueError(f"it holds more than {MOST:,} values")
        if isinstance(value, dict):
            rest += ((one, depth + 1) for pair in value.items() for one in pair)
        elif isinstance(value, (list, tuple, set)):
            rest += ((one, depth + 1) for one in value)


# ---- code of strangers -------------------------------------------------------------------------------------


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block of Python code that runs longer; what it calls in C is waited for."""
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
