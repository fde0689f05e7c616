"""Where rows come from: a file, a folder or the hub, as (row, location) in order.

A broken line is a row of None and never stops the reading. This module knows no format: to it a row is whatever
JSON or parquet holds.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from dual_head.data import Drops
from dual_head.errors import DualHeadError

__all__ = ["rows_of"]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def _split_of(path: Path) -> str | None:
    """The split a file's name tells, or else the name of the nearest folder that tells one."""
    words = (word for part in reversed(path.parts) for word in re.findall("[a-z]+", part.lower()))
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _files(root: Path, split: str, drops: Drops) -> list[Path]:
    """The files under `root` that hold `split`, or those of the only split there is, with a note."""
    if root.is_file():
        return [root]
    found = sorted(path for path in root.rglob("*") if path.name.endswith(_SUFFIXES))
    files = {path: _split_of(path.relative_to(root)) for path in found}
    if not files:
        raise DualHeadError(f"No data in '{root}'. Put files there that end in: {', '.join(_SUFFIXES)}.")
    # "latest" is no test; but of "train_prefs", which is no split we know, the name is all there is to go by.
    wanted = _SPLITS.get(split)
    asked = [path for path, named in files.items() if (named == wanted if wanted else split in path.name)]
    others = sorted({named or "unnamed" for named in files.values()})
    if not asked and len(others) > 1:
        raise DualHeadError(f"No file in '{root}' is named for split '{split}'. It has: {', '.join(others)}.")
    if not asked:
        drops.notes[f"no file in '{root}' is named for split '{split}'; read the {others[0]} files"] += 1
    return asked or list(files)


def _parse(line: bytes) -> Any:
    """The JSON value of a line, or None for a line that holds none."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return None


def _json_rows(file: Path, drops: Drops) -> Iterator[tuple[Any, str]]:
    number = 0
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if number == 1 and ".json" in file.suffixes and line.lstrip().startswith(b"["):
                    array = _parse(line + stream.read())
                    rows = [None] if array is None else array
                    yield from ((row, f"{file}: row {i}") for i, row in enumerate(rows, 1))
                elif line.strip():
                    yield _parse(line), f"{file}:{number}"
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            drops.notes[f"'{file}' is damaged after line {number}: {error}"] += 1
            yield None, f"{file}:{number + 1}"


def _parquet_rows(file: Path) -> Iterator[tuple[Any, str]]:
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(file).iter_batches()
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((row, f"{file}: row {i}") for i, row in enumerate(rows, 1))
    except (OSError, ValueError) as error:
        raise DualHeadError(f"'{file}' is no readable parquet file ({error}). Download it again.") from error


def _hub_rows(name: str, split: str, data_dir: str | None) -> Iterator[tuple[Any, str]]:
    import datasets

    try:
        rows = datasets.load_dataset(name, data_dir=data_dir, split=split)
    except (OSError, ValueError) as error:
        remedy = "Pass a local path, or check the name, split= and data_dir= there."
        raise DualHeadError(f"'{name}' is no local path and the hub says: {error} {remedy}") from error
    yield from ((row, f"{name} [{split}] row {i}") for i, row in enumerate(rows, 1))


def rows_of(name: str, split: str, data_dir: str | None, drops: Drops) -> Iterator[tuple[Any, str]]:
    """Yield each row, None for a line that is not JSON, with its location."""
    root = Path(name).expanduser() / (data_dir or "")
    if root.exists():
        for file in _files(root, split, drops):
            yield from _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file, drops)
    elif not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or name.endswith(_SUFFIXES) or Path(name).exists():
        raise DualHeadError(f"There is no file or folder '{root}'. Check the path; a hub name is owner/name.")
    else:
        yield from _hub_rows(name, split, data_dir)
