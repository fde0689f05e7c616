"""Classification data: rows of any supported format in, `Example` out, with an account of every row dropped.

A format is one function from a row to `Found`: two are here, data sets by name in `formats_rationales` and
`formats_superglue`. Labels are `formats_labels`', files `data.sources`'. It knows no tokenizer and no tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from dual_head.classify.data import cqa, superglue
from dual_head.classify.data.formats import (
    FORMATS,
    Format,
    Found,
    Row,
    Rows,
    example_format,
    fill,
    template_columns,
    text,
    texts,
)
from dual_head.classify.data.labels import Label, LabelReader, class_names, label_names, spelling_notes, unknown
from dual_head.classify.types import Example
from dual_head.data import Dropped, RowReport, rows_digest
from dual_head.data.sources import hub_rows, rows_of
from dual_head.data.turns import template_notes
from dual_head.errors import DualHeadError, did_you_mean

__all__ = ["COLUMNS", "FORMATS", "Loaded", "example_format", "fill", "load_examples", "overlap", "same_input"]

TEXTS = ("answer", "group", "id", "together")  # of an example, where a row has them
COLUMNS = ("input", "label", "rationale", *TEXTS)  # what `columns` may map
NAMED = (cqa, superglue)  # imported for the formats that they add


@dataclass(frozen=True)
class Loaded:
    """Examples, the names of their labels by index, what became of the rows, and the format they were read in."""

    examples: list[Example]
    labels: tuple[str, ...]
    drops: RowReport
    format: str


# ---- formats of one's own data ---------------------------------------------------------------------------


@example_format("triplets", matches=lambda row: "input_text" in row)
def triplets(row: Row) -> Found:
    """Input, label and rationale: {"input_text", "label", "rationale"}, and where there are those of `TEXTS`."""
    more: dict[str, Any] = {name: text(row, name, "") for name in TEXTS}
    return Found(text(row, "input_text"), row.get("label"), rationales=texts(row, "rationale"), **more)


@example_format("columns", matches=lambda row: False)  # noqa: ARG005 - is asked for, never guessed
def by_columns(row: Row, columns: Mapping[str, Any], template: str | None = None) -> Found:
    """Columns of any name; an input of several is joined by the template, or else by line breaks."""
    named = columns.get("input", template_columns(template) if template else "input")
    listed = (named,) if isinstance(named, str) else tuple(named)
    label = columns.get("label", "label")
    if label not in row and "label" in columns:
        raise Dropped(f"missing column '{label}'")
    more: dict[str, Any] = {name: text(row, columns[name], "") for name in TEXTS if name in columns}
    return Found(
        fill(template, row) if template else "\n".join(text(row, column) for column in listed),
        row.get(label),
        rationales=texts(row, columns["rationale"]) if "rationale" in columns else (),
        **more,
    )


# ---- rows to examples ------------------------------------------------------------------------------------


def load_examples(
    name: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    format: str = "auto",
    columns: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    template: str | None = None,
    max_rows: int | None = None,
    explanation: int | Literal["all"] = 1,
    multi_label: bool = False,
    labelled: bool = True,
) -> Loaded:
    """Read (the first `max_rows` rows of) a file, folder or hub data set; count every row that gave no example.

    name: a path, a name on the hub, or a format that is a data set there, such as "boolq"; columns: which column is
    the "input" (or several), "label", "rationale", "answer", "group", "id", "together"; labels: the classes in order,
    those of the data where not given; rows of others are dropped; template: the input, as "{premise} {hypothesis}"
    of the row's own columns; explanation: which of a row's rationales, from 1, or "all" for an example of each;
    multi_label: a row may have several labels; labelled: false keeps rows without a label.
    Errors: an unknown source, split, format or column, and no example left.
    """
    if explanation != "all" and (not isinstance(explanation, int) or explanation < 1):
        raise DualHeadError(f"explanation is a number from 1, or 'all', not {explanation!r}.")
    drops = RowReport()
    format_name, stream = _source(name, split, data_dir, format, drops)
    format_name = "columns" if columns and format == "auto" else format_name
    rows = islice(stream, max_rows)
    head = list(islice(rows, 20))
    chosen, read = _chosen(format_name, head, name, data_dir, columns, template)
    usable = list(_found(chain(head, rows), read, drops, classes=chosen.labels or labels or (), labelled=labelled))
    classes = chosen.labels or class_names(one.label for one, _ in usable)
    names = labels or classes or label_names((one.label for one, _ in usable), multi_label=multi_label)
    drops.notes.update(spelling_notes((one.label for one, _ in usable), names))
    reader = LabelReader(tuple(names), classes=classes, aliases=chosen.aliases, multi_label=multi_label)
    examples = _examples(usable, reader, explanation, drops)
    if not drops.sources:
        drops.sources[f"{name} [{split}]"] = rows_digest(examples)
    if not examples:
        present = next((", ".join(map(str, row)) for row, _ in head if isinstance(row, Mapping)), "none")
        problem = f"No usable row in '{name}' as '{chosen.name}', whose first row has the columns: {present}."
        raise DualHeadError(f"{problem} Check --format, --columns and --labels.\n{drops.table()}")
    return Loaded(examples, reader.names, drops, chosen.name)


def overlap(train: Sequence[Example], held_out: Sequence[Example]) -> list[int]:
    """Which of the held-out examples (their indices) have an input that is also trained on, case and spaces aside."""
    inputs = {same_input(example.input) for example in train}
    return [i for i, example in enumerate(held_out) if same_input(example.input) in inputs]


def same_input(text: str) -> str:
    """What two inputs have in common that differ in case and spaces only."""
    return " ".join(text.casefold().split())


def _source(name: str, split: str, data_dir: str | None, format: str, drops: RowReport) -> tuple[str, Rows]:
    """The format that the source itself tells, or the one asked for, and the rows."""
    if format not in (*FORMATS, "auto"):
        raise DualHeadError(f"There is no format '{format}'.{did_you_mean(format, [*FORMATS, 'auto'])}")
    root = Path(name).expanduser() / (data_dir or "")
    for candidate in FORMATS.values():
        if format in ("auto", candidate.name) and candidate.layout and root.exists():
            rows = candidate.layout(root, split, drops)
            if rows is not None:
                return candidate.name, rows
    for candidate in FORMATS.values():
        # Its copy on the hub has many tasks, and the format says which.
        chosen = name == candidate.name or (
            format == candidate.name and candidate.hub and name == candidate.hub[0] and not data_dir
        )
        if chosen and candidate.hub and not root.exists():
            return candidate.name, hub_rows(candidate.hub[0], split, configuration=candidate.hub[1])
    return format, rows_of(name, split, data_dir, drops)


def _chosen(
    format: str,
    head: list[Any],
    name: str,
    data_dir: str | None,
    columns: Mapping[str, Any] | None,
    template: str | None,
) -> tuple[Format, Any]:
    """The format, and how to read a row in it."""
    if columns is not None and format != "columns":
        raise DualHeadError(f"columns= is for format 'columns', not '{format}'. Leave out one of the two.")
    chosen = FORMATS[_detected(head, f"{name}/{data_dir or ''}", template) if format == "auto" else format]
    if chosen.name != "columns":
        return chosen, partial(_read_with, chosen.read, template) if template else chosen.read
    for column in columns or {}:
        if column not in COLUMNS:
            raise DualHeadError(f"columns= has no '{column}'.{did_you_mean(column, COLUMNS)}")
    return chosen, partial(chosen.read, columns=columns or {}, template=template)


def _detected(head: list[Any], source: str, template: str | None) -> str:
    """The format that most of the first rows match; where several do, the one that the source is named for."""
    rows = [row for row, _ in head if isinstance(row, Mapping)]
    if not rows:
        return "triplets"  # nothing to go by, and nothing to lose: the table will tell
    counts = {candidate.name: sum(bool(candidate.matches(row)) for row in rows) for candidate in FORMATS.values()}
    best = [candidate for candidate, count in counts.items() if count and count == max(counts.values())]
    if not best and template:
        return "columns"
    columns = ", ".join(sorted({str(column) for row in rows for column in row}))
    if not best:
        raise DualHeadError(
            f"No format has the columns {columns}. Say which is which, as in --columns input=text,label=class, or "
            f"name a format: {', '.join(FORMATS)}."
        )
    named = [candidate for candidate in best if candidate in source.lower().replace(".", "/").split("/")]
    if len(best) > 1 and len(named) != 1:
        raise DualHeadError(f"The columns {columns} could be {' or '.join(best)}. Say which with --format.")
    return (named or best)[0]


def _read_with(read: Any, template: str, row: Row) -> Found:
    return replace(read(row), input=fill(template, row))


def _found(
    rows: Rows, read: Any, drops: RowReport, *, classes: Sequence[str], labelled: bool
) -> Iterator[tuple[Found, str]]:
    """What the rows hold, with their places; those that hold nothing are dropped."""
    for row, where in rows:
        drops.rows += 1
        try:
            if not isinstance(row, Mapping):
                raise Dropped("malformed line" if row is None else "malformed row")
            one = read(row)
            # A template, or an empty column at the end of several, leaves spaces that predicting would not pool at.
            one = replace(one, input=one.input.strip())
            if not one.input:
                raise Dropped("empty input")
            if labelled and not isinstance(one.label, (list, tuple)) and unknown(one.label, classes):
                raise Dropped("no label")
        except Dropped as reason:
            drops.drop(str(reason), where)
        else:
            yield one, where


def _examples(
    usable: list[tuple[Found, str]], reader: LabelReader, explanation: int | str, drops: RowReport
) -> list[Example]:
    """Read the labels, and make an example of each rationale that is asked for, or one without."""
    examples: list[Example] = []
    labels: dict[str, Label] = {}
    for one, where in usable:
        try:
            label = reader(one.label)
        except Dropped as reason:
            drops.drop(str(reason), where)
            continue
        drops.kept += 1
        drops.notes.update([*one.notes, *_repeated(labels, one.input, label), *template_notes([one.input])])
        if explanation == "all":
            rationales = [rationale for rationale in one.rationales if rationale] or [""]
        else:
            rationales = [*one.rationales[int(explanation) - 1 :], ""][:1]
        more = {name: getattr(one, name) for name in TEXTS}
        examples += [Example(one.input, label, rationale, **more) for rationale in rationales]
    return examples


def _repeated(labels: dict[str, Label], text: str, label: Label) -> list[str]:
    """Notes on an input that was there before: it counts twice, and with two labels it cannot be learnt."""
    key = same_input(text)
    if key not in labels:
        labels[key] = label
        return []
    other = ["an input that was there before, with another label"] if labels[key] != label else []
    return ["an input that was there before", *other]
