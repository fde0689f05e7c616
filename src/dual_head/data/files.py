"""The rows of one file or stream: JSON, a table, parquet, Arrow or lines of text.

A broken line is a row of None and never stops the reading. A file that is not UTF-8 text, or not what its name says,
is refused with the remedy. A row is what a line or a table holds; `formats` reads it.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from dual_head.data import RowReport
from dual_head.data.streams import Unpacked, bounded_lines, require_text, unmarked
from dual_head.errors import DualHeadError
from dual_head.files.places import file_digest
from dual_head.files.reading import json_value

__all__ = ["KINDS", "SUFFIXES", "kind_of", "rows_of_file", "rows_of_stream"]

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # of data, whatever their case
LONGEST_FIELD = 2**24  # characters of a field of CSV; Python's own limit is shorter than many a document

_Rows = Iterator[tuple[Any, str]]  # rows, and where each is in its file
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_WRAPPERS = ("data", "rows", "examples", "instances")  # what JSON files name their list of rows


def kind_of(file: Path) -> str | None:
    """One of `KINDS`, by the end of the file's name without .gz, in any case; None for another end."""
    name = file.name.lower().removesuffix(".gz")
    kind = name.rpartition(".")[2].replace("ndjson", "jsonl")
    return kind if kind in KINDS else None


def rows_of_file(file: Path, drops: RowReport, *, kind: str | None = None) -> _Rows:
    """Yield the rows of a file with their places; the kind is that of its name, by default lines of JSON.

    Blank lines are rows of plain text ("txt") and skipped elsewhere. A damaged end is one broken row and a note.
    Errors: a file that cannot be read, or is not text; a table without usable columns.
    """
    kind = kind or kind_of(file) or "jsonl"
    try:
        if file.is_file():  # a pipe gives its bytes once
            drops.sources[str(file.resolve())] = file_digest(file)
        if kind in ("parquet", "arrow"):
            yield from _columnar(file, kind)
        else:
            yield from _text_rows(file, kind, drops)
    except OSError as error:
        raise DualHeadError(f"Cannot read '{file}': {error.strerror or error}. Check the path.") from error


def rows_of_stream(stream: IO[bytes], kind: str, drops: RowReport, name: str = "standard input") -> _Rows:
    """Yield the rows of a stream of "jsonl", "json", "csv", "tsv" or "txt" with their places, as they come."""
    if kind in _SEPARATORS:
        return _table(stream, kind, drops, name)
    if kind == "txt":
        return _lines(stream, drops, name)
    return _json_rows(stream, kind, drops, name)


def _text_rows(file: Path, kind: str, drops: RowReport) -> _Rows:
    where = f"{file}:0"
    with file.open("rb") as plain:
        packed = file.suffix.lower() == ".gz" or plain.peek(2)[:2] == b"\x1f\x8b"
        stream = io.BufferedReader(Unpacked(plain, file)) if packed else plain
        try:
            require_text(stream.peek(512)[:512], file)
            for row, where in rows_of_stream(stream, kind, drops, str(file)):  # type: ignore[arg-type]
                yield row, where
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            place = where.removeprefix(f"{file}:").strip()  # a line's number, or "row" and a row's
            after = f"line {place}" if place.isdecimal() else place
            drops.notes[f"'{file}' is damaged after {after}: {error}"] += 1
            yield None, f"{file}: after {after}"


def _decoded(line: bytes, drops: RowReport, name: str) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        _note_encoding(drops, name)
        return None


def _note_encoding(drops: RowReport, name: str) -> None:
    drops.notes[f"'{name}' has lines that are not UTF-8. Save it as UTF-8"] += 1


# ---- JSON ------------------------------------------------------------------------------------------------


def _parse(text: bytes, drops: RowReport, name: str) -> Any:
    """The JSON value of a text, or None for one that holds none, or a key twice in one object."""
    decoded = _decoded(text, drops, name)
    try:
        # Texts of half a character stay in the row: an answer replaces them, a pair with one is dropped.
        return None if decoded is None else json_value(decoded, _object, halves=True)
    except ValueError:
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("one key stands twice")
    return row


def _json_rows(stream: IO[bytes], kind: str, drops: RowReport, name: str) -> _Rows:
    lines: Iterator[bytes] = bounded_lines(stream, name)
    # A row a line, [ {...}, {...} ], or {"data": [ {...}, {...} ]}, each on one line or on many.
    start, first = next(((n, line) for n, line in enumerate(unmarked(lines), 1) if line.strip()), (0, b""))
    if not first:
        return
    row = _parse(first, drops, name)
    array = first.lstrip().startswith(b"[")
    if array or (row is None and kind == "json") or (kind == "json" and _wrapper(row)):
        rest = stream.read()
        whole = row if row is not None and not rest.strip() else _parse(first + rest, RowReport(), name)
        if kind == "jsonl" and _is_conversation(whole):
            whole = [whole]  # the only line, and not an array of rows
        if whole is not None or (array and kind == "json"):
            yield from ((entry, f"{name}: row {i}") for i, entry in enumerate(_rows_in(whole, drops, name), 1))
            return
        if first.strip() == b"{":
            drops.notes[f"'{name}' is not one JSON value. Write an object a line: jq -c . '{name}'"] += 1
        lines = iter(io.BytesIO(rest))
    yield row, f"{name}:{start}"
    for number, line in enumerate(lines, start + 1):
        if line.strip():
            yield _parse(line, drops, name), f"{name}:{number}"


def _wrapper(value: Any) -> str | None:
    """The key of the list of rows that an object around them has, if it is one."""
    if not isinstance(value, dict):
        return None
    lists = [key for key in _WRAPPERS if isinstance(value.get(key), list)]
    return lists[0] if len(lists) == 1 else None


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


def _rows_in(whole: Any, drops: RowReport, name: str) -> list[Any]:
    if isinstance(whole, list):
        return whole
    if (key := _wrapper(whole)) is not None:
        drops.notes[f"the rows of '{name}' are those of its '{key}'"] += 1
        return whole[key]
    return [whole]


# ---- tables and lines ------------------------------------------------------------------------------------


def _table(stream: IO[bytes], kind: str, drops: RowReport, name: str) -> _Rows:
    csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))  # there is one for the whole process
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader, columns, number = csv.reader(bounded_lines(text, name), delimiter=_SEPARATORS[kind], strict=True), None, 0
    try:
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    drops.notes[f"'{name}' ends within quotation marks, which row {number + 1} opens"] += 1
                fields = [""] * (len(columns or ()) + 1)
            if not fields:
                continue  # a blank line
            if columns is None:
                columns = _header(fields, kind, name)
                continue
            number += 1
            yield _record(fields, columns, drops, name), f"{name}: row {number}"
    finally:
        text.detach()  # the stream below is closed by its opener


def _header(fields: Sequence[str], kind: str, name: str) -> list[str]:
    columns = [field.strip() for field in fields]
    for column, _ in Counter(columns).most_common(1):
        if columns.count(column) > 1:
            raise DualHeadError(f"'{name}' has the column '{column}' twice. Rename one of the two.")
    if _is_broken(columns):
        raise DualHeadError(f"The first line of '{name}' is not UTF-8. Save it as UTF-8.")
    mark = next((mark for mark in ";\t|," if mark in columns[0]), None) if len(columns) == 1 else None
    if mark and mark != _SEPARATORS[kind]:
        raise DualHeadError(f"The columns of '{name}' are separated by {mark!r}. Save it with {_SEPARATORS[kind]!r}.")
    return columns


def _record(fields: Sequence[str], columns: Sequence[str], drops: RowReport, name: str) -> dict[str, Any] | None:
    """A row of a table; None for more fields than columns, where a text may be cut into several."""
    if _is_broken(fields):
        _note_encoding(drops, name)
        return None
    missing = [None] * (len(columns) - len(fields))
    return dict(zip(columns, (*fields, *missing), strict=True)) if len(fields) <= len(columns) else None


def _is_broken(fields: Sequence[str]) -> bool:
    """Whether one of the fields has bytes that are not UTF-8, which are read as lone surrogates."""
    return any(not field.isascii() and re.search("[\udc80-\udcff]", field) for field in fields)


def _lines(stream: IO[bytes], drops: RowReport, name: str) -> _Rows:
    for number, line in enumerate(unmarked(bounded_lines(stream, name)), 1):
        text = None if b"\0" in line else _decoded(line, drops, name)
        yield text if text is None else text.rstrip("\r\n"), f"{name}:{number}"


# ---- parquet and Arrow -----------------------------------------------------------------------------------


def _columnar(file: Path, kind: str) -> _Rows:
    if file.suffix.lower() == ".gz":
        raise DualHeadError(f"'{file}' is read at any place, which a compressed file cannot be. Unpack it with gunzip.")
    try:
        names, batches = _parquet(file) if kind == "parquet" else _arrow(file)
        if len(set(names)) < len(names):
            raise DualHeadError(f"'{file}' has a column twice: {', '.join(names)}. Rename one of the two.")
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((row, f"{file}: row {i}") for i, row in enumerate(rows, 1))
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, DualHeadError):
            raise
        raise DualHeadError(f"'{file}' is not a readable {kind} file ({error}). Download it again.") from error


def _parquet(file: Path) -> tuple[list[str], Iterator[Any]]:
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(file)
    return table.schema_arrow.names, table.iter_batches()


def _arrow(file: Path) -> tuple[list[str], Iterator[Any]]:
    """An Arrow file, which has an index at its end, or a stream, as `datasets` writes them."""
    import pyarrow as arrow

    data = arrow.memory_map(str(file))
    if data.read(6) == b"ARROW1":
        table = arrow.ipc.open_file(data)
        return table.schema.names, (table.get_batch(i) for i in range(table.num_record_batches))
    data.seek(0)
    table = arrow.ipc.open_stream(data)
    return table.schema.names, iter(table)
