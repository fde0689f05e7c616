"""Classification data: rows of any supported format in, `Example` out, with an account of every row dropped.

Formats are `formats`', labels `labels`', files `data.sources`'. It knows no tokenizer and no tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from dual_head.classify.data.formats import FORMATS
from dual_head.classify.data.labels import LabelReader, class_names, label_names, spelling_notes, unknown
from dual_head.classify.data.rows import TEXTS, Format, RawExample, Rows, fill
from dual_head.classify.types import Example, Label
from dual_head.data import Dropped, RowReport, rows_digest
from dual_head.data.sources import hub_rows, rows_of
from dual_head.data.turns import template_notes
from dual_head.errors import DualHeadError, did_you_mean

__all__ = ["COLUMNS", "FORMATS", "Loaded", "fill", "load_examples", "overlap", "same_input"]

COLUMNS = ("input", "label", "rationale", *TEXTS)  # what `columns` may map


@dataclass(frozen=True)
class Loaded:
    """Examples, the names of their labels by index, what became of the rows, and the format they were read in."""

    examples: list[Example]
    labels: tuple[str, ...]
    drops: RowReport
    format: str


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
    by default those of the data; rows of others are dropped; template: the input, as "{premise} {hypothesis}"
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
    row_format = _format(format_name, head, f"{name}/{data_dir or ''}", columns, template)
    known = row_format.labels or labels or ()
    usable = list(_usable(chain(head, rows), row_format, template, drops, classes=known, labelled=labelled))
    classes = row_format.labels or class_names(one.label for one, _ in usable)
    names = labels or classes or label_names((one.label for one, _ in usable), multi_label=multi_label)
    drops.notes.update(spelling_notes((one.label for one, _ in usable), names))
    reader = LabelReader(tuple(names), classes=classes, aliases=row_format.aliases, multi_label=multi_label)
    examples = _examples(usable, reader, explanation, drops)
    if not drops.sources:
        drops.sources[f"{name} [{split}]"] = rows_digest(examples)
    if not examples:
        present = next((", ".join(map(str, row)) for row, _ in head if isinstance(row, Mapping)), "none")
        problem = f"No usable row in '{name}' as '{row_format.name}', whose first row has the columns: {present}."
        raise DualHeadError(f"{problem} Check --format, --columns and --labels.\n{drops.table()}")
    return Loaded(examples, reader.names, drops, row_format.name)


def overlap(train: Sequence[Example], held_out: Sequence[Example]) -> list[int]:
    """Which of the held-out examples (their indices) have an input that is also trained on, case and spaces aside."""
    inputs = {same_input(example.input) for example in train}
    return [i for i, example in enumerate(held_out) if same_input(example.input) in inputs]


def same_input(text: str) -> str:
    """What two inputs have in common that differ in case and spaces only."""
    return " ".join(text.casefold().split())


def _source(name: str, split: str, data_dir: str | None, format: str, drops: RowReport) -> tuple[str, Rows]:
    """The format that the files or the name tell, else the one of the option, and the rows."""
    if format not in (*FORMATS, "auto"):
        raise DualHeadError(f"There is no format '{format}'.{did_you_mean(format, [*FORMATS, 'auto'])}")
    root = Path(name).expanduser() / (data_dir or "")
    for candidate in FORMATS.values():
        if format in ("auto", candidate.name) and candidate.layout and root.exists():
            rows = candidate.layout(root, split, drops)
            if rows is not None:
                return candidate.name, rows
    for candidate in FORMATS.values():
        if candidate.hub and not root.exists():
            home, configuration = candidate.hub
            by_format = format == candidate.name and name == home and not data_dir  # a data set of many tasks
            if name == candidate.name or by_format:
                return candidate.name, hub_rows(home, split, configuration=configuration)
    return format, rows_of(name, split, data_dir, drops)


def _format(name: str, head: list[Any], source: str, columns: Mapping[str, Any] | None, template: str | None) -> Format:
    """The format of the rows. Errors: columns for another one than "columns", or unknown ones."""
    if columns is not None and name != "columns":
        raise DualHeadError(f"columns= is for format 'columns', not '{name}'. Leave out one of the two.")
    name = _detected(head, source, template) if name == "auto" else name
    if name != "columns":
        return FORMATS[name]
    for column in columns or {}:
        if column not in COLUMNS:
            raise DualHeadError(f"columns= has no '{column}'.{did_you_mean(column, COLUMNS)}")
    return Format.of_columns(columns or {}, template)


def _detected(head: list[Any], source: str, template: str | None) -> str:
    """The format that most of the first rows match; where several do, the one that the source is named for."""
    rows = [row for row, _ in head if isinstance(row, Mapping)]
    if not rows:
        return "triplets"  # any would do: the account of the rows says what is wrong
    counts = {candidate.name: sum(candidate.fits(row) for row in rows) for candidate in FORMATS.values()}
    best = [candidate for candidate, count in counts.items() if count and count == max(counts.values())]
    if not best and template:
        return "columns"
    columns = ", ".join(sorted({str(column) for row in rows for column in row}))
    if not best:
        raise DualHeadError(
            f"No format has the columns {columns}. Say which is which, as in --columns input=text,label=class, or "
            f"name a format: {', '.join(FORMATS)}."
        )
    in_path = [candidate for candidate in best if candidate in source.lower().replace(".", "/").split("/")]
    if len(best) > 1 and len(in_path) != 1:
        raise DualHeadError(f"The columns {columns} could be {' or '.join(best)}. Say which with --format.")
    return (in_path or best)[0]


def _usable(
    rows: Rows,
    row_format: Format,
    template: str | None,
    drops: RowReport,
    *,
    classes: Sequence[str],
    labelled: bool,
) -> Iterator[tuple[RawExample, str]]:
    """What the rows hold, with their places; those that hold nothing are dropped."""
    for row, where in rows:
        drops.rows += 1
        try:
            if not isinstance(row, Mapping):
                raise Dropped("malformed line" if row is None else "malformed row")
            one = row_format.read(row, template)
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
    usable: list[tuple[RawExample, str]], reader: LabelReader, explanation: int | str, drops: RowReport
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
