"""Places that commands write to: a set of files is written whole or not at all, by one process at a time.

    OUT/.writing-3f9a/     files are written here, beside .writing-3f9a.lock, which the process holds
    OUT/.ready-3f9a/       one rename commits them; any process can do the rest
    OUT/config.json, ...   each file takes its place, then .ready-3f9a is removed

A process killed before the rename has changed nothing; the next one removes its `.writing-`. After the rename, the next
process that writes or reads there finishes the work (`settle`). Records hold the size and SHA-256 of files, which show
later whether one has changed.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dual_head.errors import DualHeadError
from dual_head.files.reading import COPY, read_json, reading

WRITING, READY, LOCK = ".writing-", ".ready-", ".lock"
PLACING = f"{READY}lock"  # held while files take their places: a `.ready-` that is found then has no living process
NAMES = ".names.json"  # in `.ready-`: all files of the set, also those that have taken their place
LAST = "config.json"  # takes its place last, after the weights that it describes
CHECKSUMS = "checksums"  # in the record of a model: {file: {"bytes", "sha256"}} of the weights beside it
MERGE_FILE = "merge.json"  # what was merged: a merge that was killed goes on, and one that is done is not repeated
EXPORTS = (MERGE_FILE, "export.json")  # the record beside an exported model
WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data")

MODEL_FILES = (*WEIGHTS, "*.safetensors.index.json", "pytorch_model*.bin*", "*.gguf", LAST, "adapter_config.json")
MODEL_FILES += EXPORTS
"""Patterns of files that make a folder a model, or a part of one."""


@contextmanager
def atomic_folder(target: Path, *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well its files replace those in `target`, all or none.

    replaces: patterns of other files in `target`, which are removed once the new ones are in place. A killed or failed
    write leaves `target` as it was, or with all of the new files. Errors: a target that cannot be written, a full disk.
    """
    with ExitStack() as exits:
        try:
            target.mkdir(parents=True, exist_ok=True)
            settle(target)
            staging = target / f"{WRITING}{secrets.token_hex(4)}"
            exits.enter_context(_held(target / f"{staging.name}{LOCK}"))
            staging.mkdir()
        except OSError as error:
            raise _unwritable(target, error) from error
        exits.callback(shutil.rmtree, staging, ignore_errors=True)
        try:
            yield staging
            for file in sorted(staging.iterdir()):
                if (target / file.name).is_dir():
                    raise OSError(None, f"a folder is where the file '{file.name}' goes")
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
            reason = f"{failure.strerror or failure}{name}"
            raise DualHeadError(f"Writing to '{target}' failed: {reason}. {remedy}") from error


def require_place(
    folder: Path, *, record: str, writes: Sequence[str] = MODEL_FILES, reads: Iterable[str | Path | None] = ()
) -> None:
    """Refuse a folder that a command reads from, or whose files it would replace without having written them.

    record: the file or folder that this command leaves in its output; writes: patterns of files that it writes; reads:
    folders and files that it reads. Errors: such a folder, with the files in it.
    """
    require_unread(folder, reads)
    settle(folder)
    names = sorted({file.name for pattern in writes for file in folder.glob(pattern)})
    if names and not (folder / record).exists():
        raise DualHeadError(
            f"'{folder}' holds {', '.join(names[:3])}, which this command did not write and would replace. Choose "
            "another output folder."
        )


def require_empty(
    folder: Path, *, record: str, identity: Any = None, overwrite: bool = False, reads: Iterable[str | Path | None] = ()
) -> bool:
    """Refuse a folder that is read from, or that is not empty without `overwrite`; True if the export is there already.

    record: the file that an export writes beside the rest; identity: the contents of that file for the same export,
    None if they are not known yet.
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
    names = sorted(file.name for file in folder.glob("*") if not file.name.startswith("."))
    if names and not overwrite:
        raise DualHeadError(
            f"'{folder}' is not empty (it holds {', '.join(names[:3])}). Choose another output folder, or replace the "
            "model in it with --overwrite (overwrite=True in Python)."
        )
    return False


def require_unread(place: Path, reads: Iterable[str | Path | None]) -> None:
    """Refuse to write to a file or folder that is read, whatever its name. Errors: the place is one of `reads`."""
    for source in reads:
        if source and place.exists() and Path(source).exists() and place.samefile(source):
            raise DualHeadError(f"'{place}' is an input of this command and is not overwritten. Choose another place.")


@contextmanager
def exclusive(place: str | Path, *, main: bool = True) -> Iterator[None]:
    """Hold a file or folder that one process at a time may write to, for as long as the block lasts.

    It need not exist yet; devices and pipes are not held. main: False for the other processes of one run.
    Errors: an empty name, a place that another process holds, or one that cannot be written.
    """
    if not str(place):
        raise DualHeadError("The output has no name. Name a place to write to.")
    place = Path(place).absolute()
    with ExitStack() as exits:
        if main and (place.is_file() or place.is_dir() or not place.exists()):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                # Beside it, so that the folder is made by what is written; inside it, where its parent is read-only.
                beside = place.parent / f".{place.name}{LOCK}"
                lock = beside if os.access(place.parent, os.W_OK) else place / LOCK
                exits.enter_context(_held(lock, blocking=False))
            except TimeoutError as error:
                raise DualHeadError(
                    f"Another process is writing to '{place}'. Wait until it has ended, or choose another place."
                ) from error
            except OSError as error:
                raise _unwritable(place, error) from error
        yield


def settle(target: Path) -> None:
    """Finish what killed processes left in a folder: committed files take their places, others are removed.

    What cannot be written is left as it is; what a living process writes is not touched.
    """
    with suppress(OSError):
        leftovers = [path.name for path in target.iterdir() if path.name.startswith((WRITING, READY))]
        if any(name.startswith(READY) for name in leftovers):
            with _held(target / PLACING):
                for ready in sorted(target.glob(f"{READY}*")):
                    if ready.is_dir() and not ready.is_symlink():
                        _place(ready, target)
        for name in {name.removesuffix(LOCK) for name in leftovers if name.startswith(WRITING)}:
            with suppress(TimeoutError), _held(target / f"{name}{LOCK}", blocking=False):  # else its process lives
                shutil.rmtree(target / name, ignore_errors=True)


def _unwritable(place: Path, error: OSError) -> DualHeadError:
    return DualHeadError(f"Cannot write to '{place}': {error.strerror}. Choose another output folder.")


# ---- records of files --------------------------------------------------------------------------------------


def file_digest(file: Path, length: int | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its first `length` bytes."""
    end = file.stat().st_size if length is None else length
    size, digest = 0, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(min(end - size, 2**20)):
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
    """Names of a folder's files that differ from what `checksums` recorded; missing files are not among them."""
    files = checksums(folder / name for name in recorded if Path(name).name == name and (folder / name).is_file())
    return [name for name in files if files[name] != recorded[name]]


def require_unaltered(folder: Path) -> None:
    """Refuse weights that differ from the record beside them; a folder without checksums passes."""
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
    """List the files of a set beside them, and flush all of it to the disk."""
    names = sorted((file.name for file in staging.iterdir()), key=lambda name: (name == LAST, name))
    (staging / NAMES).write_text(json.dumps({"names": names, "replaces": list(replaces)}))
    for path in (*staging.iterdir(), staging):
        flush(path)


def _place(ready: Path, target: Path) -> None:
    """Put the files of a set in their places; a killed process may have placed some of them already."""
    if not (ready / NAMES).exists():  # its process was killed while it removed the folder
        shutil.rmtree(ready)
        return
    remedy = f"Delete the folder '{ready}', and run the command that wrote it again."
    with reading(f"Cannot read '{ready / NAMES}'", remedy):
        record = read_json(ready / NAMES, remedy)
        names, patterns = record["names"], record["replaces"]
        if any(Path(name).name != name for name in (*names, *patterns)):  # a forged list must move nothing elsewhere
            raise ValueError("it names files of another folder")
    for name in names:
        with suppress(FileNotFoundError):
            (ready / name).replace(target / name)
    for file in [file for pattern in patterns for file in target.glob(pattern)]:
        if file.is_file() and file.name not in names:
            file.unlink(missing_ok=True)
    flush(target)
    shutil.rmtree(ready)


def system_failure(error: Exception) -> OSError | None:
    """The system's failure behind an exception: Rust libraries and torch raise it as types of their own."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    words = ("PytorchStreamWriter failed", "unexpected pos", "iostream error", "No space left")
    if any(text in str(error) for text in words):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no fsync of folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- locks -------------------------------------------------------------------------------------------------


@contextmanager
def _held(path: Path, *, blocking: bool = True) -> Iterator[None]:
    """Hold a lock file for as long as the block lasts. Errors: TimeoutError if it is held and `blocking` is off."""
    from filelock import FileLock  # slow to import, and commands that write nothing need none

    lock = FileLock(path, thread_local=False)
    lock.acquire(blocking=blocking)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: a process that waits for it sees this, and makes another
        lock.release()
