"""What a format is: a function that reads one row, and what tells its rows and files from others.

`formats` loads data sets with them. This file knows no format itself, and no file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from dual_head.data import Dropped, RowReport
from dual_head.errors import DualHeadError

Row = Mapping[str, Any]
Rows = Iterator[tuple[Any, str]]  # rows with their locations, as `rows_of` gives them


@dataclass(frozen=True, slots=True)
class Found:
    """What a format reads in one row: the texts of an `Example`, and the label as the row writes it.

    label: an index, a name, a truth value, a list of any, or None; rationales: all that there are; notes: what the
    account of the rows should say of this one.
    """

    input: str
    label: Any = None
    rationales: tuple[str, ...] = ()
    answer: str = ""
    group: str = ""
    id: str = ""
    together: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A format by name.

    labels: its classes in the order of their numbers, () where the rows decide; aliases: other words for them, in
    lower case; layout: rows of a folder or file that is not plain JSON or parquet, None where it is not of this
    format; hub: data set and configuration that the name alone stands for.
    """

    name: str
    read: Callable[..., Found]
    matches: Callable[[Row], object]
    labels: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    layout: Callable[[Path, str, RowReport], Rows | None] | None = None
    hub: tuple[str, str | None] | None = None


FORMATS: dict[str, Format] = {}


def example_format(
    name: str,
    *,
    matches: Callable[[Row], object],
    labels: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
    layout: Callable[[Path, str, RowReport], Rows | None] | None = None,
    hub: tuple[str, str | None] | None = None,
):
    """Make the decorated function, row -> `Found`, a format; `matches` is asked of rows to detect it."""

    def add(read: Callable[..., Found]) -> Callable[..., Found]:
        FORMATS[name] = Format(name, read, matches, labels, aliases or {}, layout, hub)
        return read

    return add


def has(row: Row, *columns: str) -> bool:
    """Whether a row has all of these columns, as text."""
    return all(isinstance(row.get(column), str) for column in columns)


def text(row: Row, column: str, default: str | None = None) -> str:
    """The text in a column, stripped. Raises `Dropped` where there is none, unless there is a default."""
    value = row.get(column)
    if value is None:
        if default is None:
            raise Dropped(f"missing column '{column}'")
        return default
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    # A lone surrogate is valid JSON, but no tokenizer takes it.
    if not isinstance(value, str) or value.encode(errors="replace").decode() != value:
        raise Dropped(f"column '{column}' is no text")
    return value.strip()


def texts(row: Row, column: str) -> tuple[str, ...]:
    """The text or texts in a column, () where there is none."""
    value = row.get(column)
    if isinstance(value, (list, tuple)):
        return tuple(text({column: one}, column, "") for one in value)
    content = text(row, column, "")
    return (content,) if content else ()


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template "... {column} ..." names. Errors: none, or anything else in the braces."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise DualHeadError(f"The template {template!r} has a brace too many ({error}). Double it: {{{{.") from error
    names = [(name, form, conversion) for _, name, form, conversion in parts if name is not None]
    if not names or any(not name or "[" in name or form or conversion for name, form, conversion in names):
        raise DualHeadError(f"The template {template!r} should name columns, as in '{{premise}}\\n{{hypothesis}}'.")
    return tuple(name for name, _, _ in names)


def fill(template: str, row: Row) -> str:
    """Put a row's texts into a template. Raises `Dropped` where a column is missing or no text."""
    template_columns(template)
    parts = Formatter().parse(template)
    return "".join(literal + ("" if name is None else text(row, name)) for literal, name, _, _ in parts)
