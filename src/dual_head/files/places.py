"""Places that commands write to: a set of files whole or not at all, and one process at a time.

    OUT/.writing-3f9a/     files are written here, beside .writing-3f9a.lock, which their process holds
    OUT/.ready-3f9a/       one rename, and the files count; what follows can be done by any process
    OUT/config.json, ...   each file takes its place, and .ready-3f9a goes

A process that is killed before the rename has changed nothing, and its `.writing-` is removed by the next one. What a
process killed after the rename left is put in its place by the next one that writes or reads there (`settle`). Records
hold size and SHA-256 of files, by which a later process tells that one has changed. It knows folders and files, and
nothing of what is in them.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dual_head.errors import DualHeadError
from dual_head.files.reading import COPY, json_value, read_json, reading

T = TypeVar("T")

WRITING, READY, LOCK = ".writing-", ".ready-", ".lock"
PLACING = f"{READY}lock"  # held while files take their places, so that a `.ready-` of nobody is left by the dead
NAMES = ".names.json"  # in `.ready-`: which files belong to it, those that have taken their place too
LAST = "config.json"  # takes its place last: whoever reads it finds the weights it describes
CHECKSUMS = "checksums"  # in the record of a model: {file: {"bytes", "sha256"}} of the weights beside it
EXPORTS = ("merge.json", "export.json")  # what commands that write a plain model record beside it
WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data")

MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_config.json",
    "*.gguf",
    "*.onnx",
    "*.onnx.data",
    *EXPORTS,
)
"""Patterns of files that make a folder a model, or a part of one."""


@contextmanager
def atomic_folder(target: Path, *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well its files replace those in `target`, all or none.

    replaces: patterns of other files in `target` that go, once the new ones are in their places. A killed or failed
    write leaves `target` as it was, or with all of the new files. Errors: a target that cannot be written, a full disk.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        settle(target)
        name = secrets.token_hex(4)
        lock = _lock(target / f"{WRITING}{name}{LOCK}")
        lock.acquire()
        staging = target / f"{WRITING}{name}"
        staging.mkdir()
    except OSError as error:
        raise DualHeadError(f"Cannot write to '{target}': {error.strerror}. Choose another output folder.") from error
    try:
        yield staging
        for written in sorted(staging.iterdir()):
            if (target / written.name).is_dir():
                raise OSError(None, f"a folder is where the file '{written.name}' goes")
        if any(staging.iterdir()):
            _complete(staging, replaces)
            with _held(target / PLACING):
                ready = staging.rename(target / staging.name.replace(WRITING, READY))
                _place(ready, target)
    except Exception as error:
        if (failure := system_failure(error)) is None:
            raise
        unchanged = "Nothing there was changed; free some space or choose another output folder."
        remedy = unchanged if staging.exists() else "Run the same command again: it puts the rest in place."
        name = f" ('{Path(failure.filename).name}')" if isinstance(failure.filename, str) else ""
        raise DualHeadError(f"Writing to '{target}' failed: {failure.strerror or failure}{name}. {remedy}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _let_go(lock)


def require_place(
    folder: Path, *, record: str, writes: Sequence[str] = MODEL_FILES, reads: Iterable[str | Path | None] = ()
) -> None:
    """Refuse a folder that a command reads from, or whose files it would replace without having written them.

    record: the file or folder by which a command knows what it wrote; writes: patterns of files that it writes; reads:
    folders and files that it reads. Errors: one of these, with what is there.
    """
    require_unread(folder, reads)
    if not folder.is_dir():
        return
    settle(folder)
    if (folder / record).exists():
        return
    others = sorted({file.name for pattern in writes for file in folder.glob(pattern)})
    if others:
        raise DualHeadError(
            f"'{folder}' holds {', '.join(others[:3])}, which this command did not write and would replace. Choose "
            "another output folder."
        )


def require_empty(
    folder: Path, *, record: str, identity: Any = None, overwrite: bool = False, reads: Iterable[str | Path | None] = ()
) -> bool:
    """Refuse a folder that is read from, or that holds anything without `overwrite`; True where all is there already.

    record: the file that an export writes beside the rest; identity: what it says where the same was exported, None
    where that cannot be known yet.
    """
    require_unread(folder, reads)
    settle(folder)
    if not overwrite and (folder / record).is_file():
        recorded = read_json(folder / record, "Choose another output folder, or replace the model with --overwrite.")
        recorded.pop(CHECKSUMS, None)
        if identity in (None, recorded):
            if identity is not None:
                require_unaltered(folder)
            return True
    held = sorted(file.name for file in folder.glob("*") if not file.name.startswith(".")) if folder.is_dir() else []
    if held and not overwrite:
        raise DualHeadError(
            f"'{folder}' is not empty (it holds {', '.join(held[:3])}). Choose another output folder, or replace the "
            "model in it with --overwrite (overwrite=True in Python)."
        )
    return False


def require_unread(place: Path, reads: Iterable[str | Path | None]) -> None:
    """Refuse a file or folder to write to that is one of those that are read, under whatever name."""
    for source in reads:
        if source and place.exists() and Path(source).exists() and place.samefile(source):
            raise DualHeadError(f"'{place}' is what is read here, and is not written over. Choose another place.")


@contextmanager
def exclusive(place: str | Path, *, main: bool = True) -> Iterator[None]:
    """Hold a file or folder that one process at a time may write to, for as long as the block lasts.

    It need not be there yet; devices and pipes are not held. main: False for processes of one run that leave the
    holding to another. Errors: it has no name, another process holds it, or it cannot be written.
    """
    if not str(place):
        raise DualHeadError("The output has no name. Name a place to write to.")
    place = Path(place).absolute()
    if not main or (place.exists() and not place.is_file() and not place.is_dir()):
        yield
        return
    from filelock import Timeout

    beside = place.parent / f".{place.name}{LOCK}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, so that a folder is made by what is written; inside, where others may not write beside it.
        lock = _lock(beside if os.access(place.parent, os.W_OK) else place / LOCK)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise DualHeadError(
            f"Another process is writing to '{place}'. Wait until it has ended, or choose another place."
        ) from error
    except OSError as error:
        raise DualHeadError(f"Cannot write to '{place}': {error.strerror}. Choose another output folder.") from error
    try:
        yield
    finally:
        _let_go(lock)


def settle(target: Path) -> None:
    """Finish what killed processes left in a folder: files that count take their places, others are removed.

    What cannot be written is left as it is; what a living process writes is not touched.
    """
    with suppress(OSError):
        left = [path for path in target.iterdir() if path.name.startswith((WRITING, READY))]
        if any(path.name.startswith(READY) for path in left):
            with _held(target / PLACING):
                for ready in sorted(target.glob(f"{READY}*")):
                    if ready.is_dir() and not ready.is_symlink():
                        _place(ready, target)
        for name in {path.name.removesuffix(LOCK) for path in left if path.name.startswith(WRITING)}:
            _remove_dead(target / name)


# ---- what files held when they were written ----------------------------------------------------------------


def add_lines(
    file: Path, lines: Iterable[str], *, remedy: str = "Choose another output folder, or free some space."
) -> None:
    """Add lines to a file in one write, behind a line that a killed run cut. Errors: a file that cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        cut = b"\n" if _is_cut(file) else b""
        with file.open("ab") as stream:
            stream.write(cut + "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise DualHeadError(f"Cannot write to '{file}': {error.strerror}. {remedy}") from error


def _is_cut(file: Path) -> bool:
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def kept_rows(file: Path, read: Callable[[Any], T]) -> dict[str, T]:
    """Read every whole line of JSON by its "key", {key: read(row)}; a line that a killed run cut is left out."""
    kept = {}
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):
            row = json_value(line, halves=True)  # `read` replaces halves of characters
            kept[row["key"]] = read(row)
    return kept


def file_digest(file: Path, length: int | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its first `length` bytes."""
    rest = file.stat().st_size if length is None else length
    size, digest = 0, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(min(rest - size, 2**20)):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def checksums(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """{name: size and SHA-256} of each file, in the order of their names."""
    files = sorted(files)
    with ThreadPoolExecutor() as pool:  # shards of a large model: as fast as the disk
        return dict(zip((file.name for file in files), pool.map(file_digest, files), strict=True))


def weights_in(folder: Path) -> list[Path]:
    """The files of a folder that hold weights."""
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def altered(folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    """Names of a folder's files that are not what `checksums` recorded; those that are gone are not among them."""
    now = checksums(folder / name for name in recorded if Path(name).name == name and (folder / name).is_file())
    return [name for name in now if now[name] != recorded[name]]


def require_unaltered(folder: Path) -> None:
    """Refuse weights that are not what the record beside them says; a folder without checksums is passed."""
    for record in (folder / name for name in (LAST, *EXPORTS) if (folder / name).is_file()):
        if not _altered_since(record):
            continue
        settle(folder)  # a new set of files may have been taking its place
        if names := _altered_since(record):
            raise DualHeadError(
                f"'{folder / names[0]}' is not what was written: its size or SHA-256 is not the one in '{record}'. "
                f"Copy it again, or make it again. If it was changed on purpose, remove '{CHECKSUMS}' from '{record}'."
            )


def _altered_since(record: Path) -> list[str]:
    with reading(f"Cannot read '{record}'", COPY):
        return altered(record.parent, read_json(record, COPY).get(CHECKSUMS) or {})


# ---- one set of files --------------------------------------------------------------------------------------


def _complete(staging: Path, replaces: Sequence[str]) -> None:
    """List the files of a set beside them, and have all of it on the disk."""
    names = sorted((file.name for file in staging.iterdir()), key=lambda name: (name == LAST, name))
    (staging / NAMES).write_text(json.dumps({"names": names, "replaces": list(replaces)}))
    for path in (*staging.iterdir(), staging):
        flush(path)


def _place(ready: Path, target: Path) -> None:
    """Put the files of a set in their places; those that are there already were put by a process that is dead."""
    if not (ready / NAMES).exists():  # its process was killed while it removed what was done with
        shutil.rmtree(ready)
        return
    remedy = f"Delete the folder '{ready}', and run the command that wrote it again."
    with reading(f"Cannot read '{ready / NAMES}'", remedy):
        listed = read_json(ready / NAMES, remedy)
        names, patterns = listed["names"], listed["replaces"]
        if any(Path(name).name != name for name in (*names, *patterns)):  # a stranger's list moves nothing elsewhere
            raise ValueError("it names files of another folder")
    for name in names:
        with suppress(FileNotFoundError):
            (ready / name).replace(target / name)
    for other in [file for pattern in patterns for file in target.glob(pattern)]:
        if other.is_file() and other.name not in names:
            other.unlink(missing_ok=True)
    flush(target)
    shutil.rmtree(ready)


def _remove_dead(staging: Path) -> None:
    """Remove what is written by nobody any more: its lock can be had."""
    from filelock import Timeout

    lock = _lock(staging.with_name(f"{staging.name}{LOCK}"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return
    shutil.rmtree(staging, ignore_errors=True)
    _let_go(lock)


def system_failure(error: Exception) -> OSError | None:
    """The system's failure that an exception tells of: Rust's libraries and torch raise it under names of their own."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    words = ("PytorchStreamWriter failed", "unexpected pos", "iostream error", "No space left")
    if any(text in str(error) for text in words):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def flush(path: Path) -> None:
    """Have a file, or a folder's names, written to the disk before anything relies on it."""
    number = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no fsync of folders
            os.fsync(number)
    finally:
        os.close(number)


# ---- locks -------------------------------------------------------------------------------------------------


def _lock(path: Path):
    from filelock import FileLock  # not where files are only looked at

    return FileLock(path, thread_local=False)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    lock = _lock(path)
    lock.acquire()
    try:
        yield
    finally:
        _let_go(lock)


def _let_go(lock) -> None:
    """Remove a lock's file while it is held: whoever waits for it sees that its name is gone, and makes another."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
