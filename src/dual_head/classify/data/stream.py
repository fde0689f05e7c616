"""Rows to classify, from a file or a stream of any length, one at a time; and the text in each.

A broken row is a row of None and never stops the reading. It knows files, rows and how inputs are written, and no
model.
"""

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from dual_head.classify.data.formats import FORMATS
from dual_head.classify.data.rows import Format, RawExample, Row, template_columns, text
from dual_head.data import Dropped, RowReport
from dual_head.data.files import KINDS as FILES
from dual_head.data.files import kind_of, rows_of_file, rows_of_stream
from dual_head.errors import DualHeadError, did_you_mean

__all__ = ["COLUMNS", "KINDS", "Query", "count_rows", "read_rows", "reader_of"]

COLUMNS = ("input", "input_text", "sentence", "text")  # where a text is looked for, in this order
KINDS = ("auto", *FILES)


class Query(NamedTuple):
    """The text to classify, and the row's id, None where it has none."""

    text: str
    id: Any = None


# ---- rows ------------------------------------------------------------------------------------------------


def read_rows(source: str, *, kind: str = "auto") -> Iterator[Any]:
    """Yield the rows of a file, or of standard input ("-"): mappings, plain texts, or None for a broken one.

    kind: told from the file's name, and for standard input from its first line, where "auto"; whatever it is, a name
    that ends in .gz is that of a compressed file. Blank lines are rows of plain text and nothing between rows of JSON.
    Errors: no such file, a kind that cannot be streamed or read.
    """
    if kind not in KINDS:
        raise DualHeadError(f"Unknown kind of file '{kind}'.{did_you_mean(kind, KINDS)}")
    if source == "-":
        return _of_stream(sys.stdin.buffer, kind)
    file = Path(source).expanduser()
    if not file.is_file():
        raise DualHeadError(f"There is no file '{source}' to classify. Check the path, or give - for standard input.")
    return _texts(rows_of_file(file, RowReport(), kind=_kind_of(file) if kind == "auto" else kind))


def count_rows(source: str, *, kind: str = "auto") -> int | None:
    """How many rows a file has, where that is quick to find out (lines of text or JSON, parquet); else None."""
    file = Path(source).expanduser()
    if source == "-" or file.suffix == ".gz" or not file.is_file():
        return None
    kind = _kind_of(file) if kind == "auto" else kind
    if kind == "parquet":
        import pyarrow.parquet as parquet

        try:
            return parquet.read_metadata(file).num_rows
        except (OSError, ValueError):
            return None  # reading it will say what is wrong
    if kind not in ("jsonl", "txt"):
        return None
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(partial(stream.read, 1 << 20), b""))


def _kind_of(file: Path) -> str:
    kind = kind_of(file)
    if kind is None:
        raise DualHeadError(f"What '{file}' holds is not told by its name. Say it with --kind: {', '.join(KINDS[1:])}.")
    return kind


def _of_stream(stream: IO[bytes], kind: str) -> Iterator[Any]:
    if kind in ("json", "parquet", "arrow"):
        raise DualHeadError(f"{kind} cannot be read from a stream. Give a file, or JSON lines.")
    if kind != "auto":
        return _texts(rows_of_stream(stream, kind, RowReport()))
    first = stream.readline()
    start = first.removeprefix(b"\xef\xbb\xbf").strip()
    if start == b"[" or start.startswith((b"[{", b'["')):  # an array, which is read whole
        return _texts(rows_of_stream(io.BytesIO(first + stream.read()), "jsonl", RowReport()))
    kind = "jsonl" if start.startswith((b"{", b'"')) else "txt"
    return _texts(rows_of_stream(_Begun(first, stream), kind, RowReport()))  # type: ignore[arg-type]


class _Begun:
    """A stream whose first line has been read already."""

    def __init__(self, first: bytes, stream: IO[bytes]):
        self._first, self._stream = first, stream

    def readline(self, size: int = -1) -> bytes:
        """The next line, the first one again."""
        first, self._first = self._first, b""
        return first or self._stream.readline(size)


def _texts(rows: Iterator[tuple[Any, str]]) -> Iterator[Any]:
    return (row.strip() if isinstance(row, str) else row for row, _ in rows)


# ---- the text of a row -----------------------------------------------------------------------------------


def reader_of(
    written: Mapping[str, Any] | None,
    *,
    column: str | None = None,
    format: str | None = None,
    template: str | None = None,
) -> Callable[[Any], Query]:
    """Make the function from a row to its text; it raises `Dropped` where a row has no text.

    written: a classifier's config.text, how inputs were written in training; column, format, template: what holds
    instead, one at most. Without any of them the text is the first of `COLUMNS` that a row has. A row that is plain
    text is the text. Spaces around a text are left out, as in training. Errors: an unknown format, more than one of
    the three.
    """
    if sum(choice is not None for choice in (column, format, template)) > 1:
        raise DualHeadError("A text is in one column, or written by a template or a format. Give one of the three.")
    recorded = {} if column or format or template else dict(written or {})
    template, format = template or recorded.get("template"), format or recorded.get("format")
    if format is not None and format not in FORMATS:
        raise DualHeadError(f"There is no format '{format}'.{did_you_mean(format, FORMATS)}")
    if template:
        template_columns(template)  # a mistake in it would be one of every row
        row_format = Format("template", template, rationales=())
    elif format == "columns":
        columns = recorded.get("columns") or {}  # those of labels and rationales may be unknown yet
        row_format = Format.of_columns({name: columns[name] for name in ("input", "id") if name in columns})
    elif format not in (None, "auto"):
        row_format = FORMATS[format]
    else:
        return partial(_query, read=partial(_by_name, columns=(column,) if column else COLUMNS))
    return partial(_query, read=row_format.read)


def _query(row: Any, *, read: Callable[[Row], RawExample]) -> Query:
    if isinstance(row, str):
        return Query(row.strip())
    if not isinstance(row, Mapping):
        raise Dropped("malformed row")
    example = read(row)
    return Query(example.input.strip(), example.id or None if row.get("id") is None else row["id"])


def _by_name(row: Row, columns: tuple[str, ...]) -> RawExample:
    present = next((column for column in columns if column in row), None)
    if present is None:
        raise Dropped(f"no column {' or '.join(columns)}")
    return RawExample(text(row, present))
