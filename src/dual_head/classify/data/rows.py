"""What a format is: how one row of a data set becomes an example, and what tells its rows and files from others.

`formats` is the table of them. This file knows no format itself, and no file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any, Self

from dual_head.data import Dropped, RowReport
from dual_head.errors import DualHeadError

Row = Mapping[str, Any]
Rows = Iterator[tuple[Any, str]]  # rows with their locations, as `rows_of` gives them
TEXTS = ("answer", "group", "id", "together")  # of an example, where a row has them


@dataclass(frozen=True, slots=True)
class RawExample:
    """The texts of an `Example`, and the label as the row writes it.

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


@dataclass(frozen=True)
class Format:
    """A format by name.

    template: the input, from columns in braces; inputs: its columns instead, joined by line breaks; label: its column;
    needs_label: drop rows without that column; rationales: their columns; texts: {one of `TEXTS`: its column};
    labels: the classes in the order of their numbers, () where the rows decide; aliases: other words for them, in
    lower case; prepare: adds columns that the template or `texts` name; matches: whether a row is of this format, by
    default whether it has the template's columns; layout: rows of a folder or file that is not plain JSON or parquet,
    None where it is not of this format; hub: data set and configuration that the name alone stands for.
    """

    name: str
    template: str | None = None
    inputs: tuple[str, ...] = ()
    label: str = "label"
    needs_label: bool = False
    rationales: tuple[str, ...] = ("rationale",)
    texts: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Row], Row] = dict
    matches: Callable[[Row], object] | None = None
    layout: Callable[[Path, str, RowReport], Rows | None] | None = None
    hub: tuple[str, str | None] | None = None

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any], template: str | None = None) -> Self:
        """The format of rows whose columns are these: {"input": one or several, "label", "rationale", *`TEXTS`}."""
        inputs = columns.get("input", "input")
        return cls(
            "columns",
            template,
            inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs),
            label=columns.get("label", "label"),
            needs_label="label" in columns,
            rationales=(columns["rationale"],) if "rationale" in columns else (),
            texts={name: columns[name] for name in TEXTS if name in columns},
        )

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns of this format."""
        return bool(self.matches(row) if self.matches else has(row, *template_columns(self.template or "")))

    def read(self, row: Row, template: str | None = None) -> RawExample:
        """Read one row; template: how its input is written instead. Raises `Dropped` for a row that has none."""
        if self.needs_label and self.label not in row:
            raise Dropped(f"missing column '{self.label}'")
        ready = self.prepare(row)
        if template:
            content = fill(template, row)
        elif self.template:
            content = fill(self.template, ready)
        else:
            content = "\n".join(text(ready, column) for column in self.inputs)
        columns = [column for column in self.rationales if column in row]
        more: dict[str, Any] = {name: text(ready, column, "") for name, column in self.texts.items() if name != "id"}
        return RawExample(
            content,
            row.get(self.label),
            # A blank one keeps its place: of three, the third is asked for by its number.
            rationales=tuple(one for column in columns for one in texts(row, column) or ("",)),
            id=_id(ready, self.texts.get("id", "")),
            **more,
        )


def _id(row: Row, column: str) -> str:
    try:
        return text(row, column, "")
    except Dropped:
        return ""  # no row is lost for its id


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
        raise Dropped(f"column '{column}' is not text")
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
    return tuple(name for _, name in _parts(template) if name is not None)


def fill(template: str, row: Row) -> str:
    """Put a row's texts into a template. Raises `Dropped` where a column is missing or no text."""
    return "".join(literal + ("" if name is None else text(row, name)) for literal, name in _parts(template))


@lru_cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as literals, each with the column that follows it. Errors: as of `template_columns`."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise DualHeadError(f"The template {template!r} has a brace too many ({error}). Double it: {{{{.") from error
    names = [(name, form, conversion) for _, name, form, conversion in parts if name is not None]
    if not names or any(not name or "[" in name or form or conversion for name, form, conversion in names):
        raise DualHeadError(f"The template {template!r} should name columns, as in '{{premise}}\\n{{hypothesis}}'.")
    return tuple((literal, name) for literal, name, _, _ in parts)
