"""The rows of one file or stream: JSON, a table, parquet, Arrow or lines of text.

A broken line is a row of None and never stops the reading. A file that is not UTF-8 text, or not what its name says,
is refused with the remedy. This module knows no format: to it a row is whatever a line or a table holds.
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
from typing import IO, Any, AnyStr

from dual_head.data import RowReport
from dual_head.errors import DualHeadError
from dual_head.files.places import file_digest
from dual_head.files.reading import json_value

__all__ = ["KINDS", "SUFFIXES", "kind_of", "rows_of_file", "rows_of_stream"]

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # of data, whatever their case
LONGEST_LINE = 2**30  # bytes; many a JSON file is one line
RATIO, ROOM = 200, 2**28  # a gzipped file unpacks to at most so many times its size, or to so many bytes
LONGEST_FIELD = 2**24  # characters of a field of CSV; Python's own limit is shorter than many a document

_Rows = Iterator[tuple[Any, str]]  # rows, and where each is in its file
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_WRAPPERS = ("data", "rows", "examples", "instances")  # what JSON files name their list of rows
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_OTHERS = {
    rb"PAR1": "a parquet file. Give it a name that ends in .parquet",
    rb"ARROW1": "an Arrow file. Give it a name that ends in .arrow",
    rb"PK\x03\x04": "a zip archive or a workbook. Unpack it, or save the sheet as CSV",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it with unzstd",
    rb"BZh\d1AY": "compressed with bzip2. Unpack it with bunzip2",
    rb"\xfd7zXZ": "compressed with xz. Unpack it with unxz",
}


def kind_of(file: Path) -> str | None:
    """One of `KINDS`, by the file's name without .gz, whatever its case; None where the name tells none."""
    name = file.name.lower().removesuffix(".gz")
    kind = {"ndjson": "jsonl"}.get(ending := name.rpartition(".")[2], ending)
    return kind if kind in KINDS else None


def rows_of_file(file: Path, drops: RowReport, *, kind: str | None = None) -> _Rows:
    """Yield the rows of a file with their places; the kind is told by its name, lines of JSON where that tells none.

    Blank lines are rows of plain text ("txt") and nothing elsewhere. A damaged end is one broken row and a note.
    Errors: a file that cannot be read, or is no text; a table without usable columns.
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
        stream = io.BufferedReader(_Unpacked(plain, file)) if packed else plain
        try:
            _require_text(stream.peek(512)[:512], file)
            for row, where in rows_of_stream(stream, kind, drops, str(file)):  # type: ignore[arg-type]
                yield row, where
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            place = where.removeprefix(f"{file}:").strip()  # a line's number, or "row" and a row's
            after = f"line {place}" if place.isdecimal() else place
            drops.notes[f"'{file}' is damaged after {after}: {error}"] += 1
            yield None, f"{file}: after {after}"


class _Unpacked(io.RawIOBase):
    """The bytes of a gzipped file, up to as many as a file of rows may unpack to."""

    def __init__(self, plain: IO[bytes], file: Path):
        self._stream, self._file = gzip.GzipFile(fileobj=plain), file
        self._room = max(ROOM, RATIO * file.stat().st_size)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes. Errors: more of them than `RATIO` times the size of the file."""
        count = self._stream.readinto(buffer)
        self._room -= count
        if self._room < 0:
            raise DualHeadError(
                f"'{self._file}' unpacks to more than {RATIO} times its size. If that is right, unpack it with gunzip "
                "and read what comes out."
            )
        return count


def _bounded(stream: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    """The lines of a stream. Errors: one that has no end."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise DualHeadError(f"'{name}' has a line of {LONGEST_LINE:,} bytes or more. Write a row on each line.")
        yield line


def _require_text(head: bytes, file: Path) -> None:
    """Refuse what is no UTF-8 text. Errors: UTF-16 and UTF-32, compressed files, other binary ones."""
    other = next((what for start, what in _OTHERS.items() if re.match(start, head)), None)
    if other:
        raise DualHeadError(f"'{file}' is {other}.")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding:
        raise DualHeadError(f"'{file}' is {encoding} text. Save it as UTF-8: iconv -f {encoding} -t UTF-8 '{file}'.")
    if b"\0" in head:
        raise DualHeadError(f"'{file}' holds NUL bytes: it is binary, or UTF-16 without a mark. Save it as UTF-8 text.")


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
        # Texts of half a character are for whoever reads the row: an answer replaces them, a pair is dropped.
        return None if decoded is None else json_value(decoded, _object, halves=True)
    except ValueError:
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is there twice")
    return row


def _json_rows(stream: IO[bytes], kind: str, drops: RowReport, name: str) -> _Rows:
    lines: Iterator[bytes] = _bounded(stream, name)
    start, first = next(((n, line) for n, line in enumerate(_unmarked(lines), 1) if line.strip()), (0, b""))
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
            yield from ((one, f"{name}: row {i}") for i, one in enumerate(_rows_in(whole, drops, name), 1))
            return
        if first.strip() == b"{":
            drops.notes[f"'{name}' is not one JSON value. Write an object a line: jq -c . '{name}'"] += 1
        lines = iter(io.BytesIO(rest))
    yield row, f"{name}:{start}"
    for number, line in enumerate(lines, start + 1):
        if line.strip():
            yield _parse(line, drops, name), f"{name}:{number}"


def _unmarked(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines without the byte order mark that Windows puts first."""
    mark = b"\xef\xbb\xbf"
    for line in lines:  # "yield from" would close the stream with this generator
        yield line.removeprefix(mark)
        mark = b""


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
    reader, columns, number = csv.reader(_bounded(text, name), delimiter=_SEPARATORS[kind], strict=True), None, 0
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
        text.detach()  # whoever opened what is below closes it


def _header(fields: Sequence[str], kind: str, name: str) -> list[str]:
    columns = [field.strip() for field in fields]
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise DualHeadError(f"'{name}' has the column '{twice[0]}' twice. Rename one of the two.")
    if _is_broken(columns):
        raise DualHeadError(f"The first line of '{name}' is not UTF-8. Save it as UTF-8.")
    other = next((mark for mark in ";\t|," if mark in columns[0]), None) if len(columns) == 1 else None
    if other and other != _SEPARATORS[kind]:
        raise DualHeadError(f"The columns of '{name}' are separated by {other!r}. Save it with {_SEPARATORS[kind]!r}.")
    return columns


def _record(fields: Sequence[str], columns: Sequence[str], drops: RowReport, name: str) -> dict[str, Any] | None:
    """A row of a table; None where there are more fields than columns: nobody can tell which are one text."""
    if _is_broken(fields):
        _note_encoding(drops, name)
        return None
    missing = [None] * (len(columns) - len(fields))
    return dict(zip(columns, (*fields, *missing), strict=True)) if len(fields) <= len(columns) else None


def _is_broken(fields: Sequence[str]) -> bool:
    """Whether bytes that are no UTF-8 stood in one of the fields; they are read as lone surrogates."""
    return any(not field.isascii() and re.search("[\udc80-\udcff]", field) for field in fields)


def _lines(stream: IO[bytes], drops: RowReport, name: str) -> _Rows:
    for number, line in enumerate(_unmarked(_bounded(stream, name)), 1):
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
        raise DualHeadError(f"'{file}' is no readable {kind} file ({error}). Download it again.") from error


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
