"""Files of lines that a run appends to, and goes on from after it was killed."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from dual_head.errors import DualHeadError
from dual_head.files.reading import json_value

T = TypeVar("T")


def add_lines(
    file: Path, lines: Iterable[str], *, remedy: str = "Choose another output folder, or free some space."
) -> None:
    """Append lines in one write; a line that a killed run cut is ended first. Errors: a file that cannot be written."""
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


def rows_by_key(file: Path, read: Callable[[Any], T]) -> dict[str, T]:
    """Read every whole line of JSON, {its "key": read(row)}; a line that a killed run cut is left out."""
    rows = {}
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):
            row = json_value(line, halves=True)  # `read` replaces halves of characters
            rows[row["key"]] = read(row)
    return rows
