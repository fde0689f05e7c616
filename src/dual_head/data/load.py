"""Rows of any supported format in, pairs or single replies out, with a report of every row dropped.

Rows come from `sources`, in no matter which file; what one row says is a format's to tell.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from statistics import median
from typing import Any

from dual_head.data import Dropped, Feedback, Pair, RowReport, rows_digest
from dual_head.data.formats import FORMATS, SCORE, Format
from dual_head.data.sources import rows_of
from dual_head.data.turns import has_question, lower_names, notes_of, require_no_images, unread_keys
from dual_head.errors import DualHeadError, did_you_mean

__all__ = ["load_feedback", "load_pairs"]

HEAD = 20  # rows that tell the format
Row = Mapping[str, Any]


def load_pairs(
    name: str,
    *,
    split: str = "train",
    objective: str | None = None,
    data_dir: str | None = None,
    format: str = "auto",
    max_rows: int | None = None,
) -> tuple[list[Pair], RowReport]:
    """Read (the first `max_rows` rows of) a file, folder or hub data set; count every row that gave no pair.

    Raises DualHeadError for an unknown source, split, format or objective, for single replies, and if no pair is left.
    """
    rows = _Rows(name, split, data_dir, format, max_rows)
    if column := rows.format.judged_by:
        raise DualHeadError(
            f"'{name}' holds single replies with a {column}, and pairs of replies are needed. Train on them with "
            "'dual-head train kto', or give rows of prompt, chosen and rejected."
        )
    pairs = list(rows.read(objective, None))
    return pairs, rows.finish(pairs, "pair")


def load_feedback(
    name: str,
    *,
    split: str = "train",
    objective: str | None = None,
    data_dir: str | None = None,
    format: str = "auto",
    max_rows: int | None = None,
    label_threshold: float | None = None,
) -> tuple[list[Feedback], RowReport]:
    """Read single replies as `load_pairs` reads pairs; a pair gives two, of which the chosen one is desirable.

    label_threshold: from which score on a reply is desirable, where rows have scores.
    Raises DualHeadError as `load_pairs` does, for scores without a threshold or the reverse, and for a row whose label
    or score is another thing than one.
    """
    rows = _Rows(name, split, data_dir, format, max_rows, by_score=label_threshold is not None)
    replies: list[Feedback] = []
    for one in rows.read(objective, label_threshold):
        if isinstance(one, Pair):
            replies += [Feedback(one.prompt, one.chosen, True), Feedback(one.prompt, one.rejected, False)]
            rows.report.notes["a pair read as two replies, the chosen one desirable"] += 1
        else:
            replies.append(one)
    return replies, rows.finish(replies, "reply")


class _Rows:
    """The rows of a source and their format; `report` says what became of them."""

    def __init__(
        self, name: str, split: str, data_dir: str | None, form: str, most: int | None, *, by_score: bool = False
    ):
        self.name, self.split, self.report = name, split, RowReport()
        rows = islice(rows_of(name, split, data_dir, self.report), most)
        rows = ((lower_names(row) if isinstance(row, Mapping) else row, where) for row, where in rows)
        head = list(islice(rows, HEAD))
        self._rows, self._head = chain(head, rows), [row for row, _ in head if isinstance(row, Mapping)]
        self.format = _format(form, self._head, by_score=by_score)

    def read(self, objective: str | None, threshold: float | None) -> Iterator[Any]:
        """Yield what usable rows say, each once: pairs or single replies, as the format has them."""
        read = _reader(self.format, self._head, objective, threshold)
        prompted, seen = _have_prompts(self._head), set()
        for row, where in self._rows:
            self.report.rows += 1
            try:
                one = _one(row, where, read, prompted=prompted)
                if (key := hash(json.dumps([getattr(one, name) for name in one.__slots__]))) in seen:
                    raise Dropped("duplicate pair" if isinstance(one, Pair) else "duplicate reply")
            except Dropped as reason:
                self.report.drop(str(reason), where)
                continue
            seen.add(key)
            self.report.kept += 1
            self.report.notes.update(_notes(row, one))
            yield one

    def finish(self, read: Sequence[Any], noun: str) -> RowReport:
        """The report, with where the rows are from. Errors: no row is left."""
        if not self.report.sources:
            self.report.sources[f"{self.name} [{self.split}]"] = rows_digest(read)
        if not read:
            table = self.report.table()
            remedy = "Check the file, or name the format of its rows (--dataset_format, in Python format=)."
            raise DualHeadError(f"No usable {noun} in '{self.name}'. {remedy}\n{table}")
        return self.report


def _one(row: Any, where: str, read: Callable[[Row], Pair | Feedback], *, prompted: bool) -> Pair | Feedback:
    """What a row says. Errors: `Dropped`; a value that is wrong and not only absent, with its place."""
    if not isinstance(row, Mapping):
        raise Dropped("malformed line" if row is None else "malformed row")
    require_no_images(row, where)
    try:
        one = read(row)
    except DualHeadError as error:
        raise DualHeadError(f"{where}: {error}") from error
    if prompted and _is_implicit(row, one):
        raise Dropped("empty prompt")
    flaw = one.flaw()
    keys = unread_keys(row) if flaw == "identical" else ()
    if flaw:
        raise Dropped(f"identical but for {', '.join(keys)}" if keys else flaw)
    return one


def _format(name: str, rows: list[Row], *, by_score: bool) -> Format:
    """The format of this name; "auto" is the one that most of the first rows match. Errors: none does."""
    if name == "auto" and not rows:
        return FORMATS["trl"]  # any: no row can be read, and the report says so
    if name == "auto":
        if by_score and any(FORMATS["scored"].matches(row) for row in rows):
            return FORMATS["scored"]  # where rows have a label too
        name = max(FORMATS, key=lambda candidate: sum(bool(FORMATS[candidate].matches(row)) for row in rows))
        if not any(FORMATS[name].matches(row) for row in rows):
            columns = sorted({f"{column} ({_kind(value)})" for row in rows for column, value in row.items()})
            raise DualHeadError(
                f"No format has the columns {', '.join(columns)}. A pair is a question and two replies: rename the "
                "columns to prompt, chosen and rejected. A reply by itself has prompt, completion, and label or score. "
                f"Formats known: {', '.join(FORMATS)}."
            )
    if name not in FORMATS:
        raise DualHeadError(f"There is no format '{name}'.{did_you_mean(name, [*FORMATS, 'auto'])}")
    return FORMATS[name]


def _reader(
    form: Format, rows: list[Row], objective: str | None, threshold: float | None
) -> Callable[[Row], Pair | Feedback]:
    """The row function of a format. Errors: an objective or threshold that it needs, or that it has no use of."""
    if not form.objectives and objective is not None:
        raise DualHeadError(f"Format '{form.name}' has one preference per row. Leave out objective='{objective}'.")
    if form.objectives and objective not in form.objectives:
        choices = ", ".join(form.objectives)
        raise DualHeadError(f"Format '{form.name}' needs objective= one of: {choices}; got {objective!r}.")
    if form.judged_by != SCORE and threshold is not None and rows:
        raise DualHeadError(
            f"Format '{form.name}' has no {SCORE} to compare with label_threshold={threshold:g}. Leave it out, or give "
            "rows of prompt, completion and score."
        )
    if form.judged_by == SCORE and threshold is None:
        raise DualHeadError(
            f"The rows have a {SCORE} and no label. Say from which score on a reply is desirable: "
            f"--label_threshold{_middle(rows)}"
        )
    if form.judged_by == SCORE:
        return partial(form.read, threshold=threshold)
    return partial(form.read, objective=objective) if form.objectives else form.read


def _middle(rows: list[Row]) -> str:
    """A threshold to begin with, for a message: the median of the first scores."""
    scores = [row[SCORE] for row in rows if isinstance(row.get(SCORE), int | float) and row[SCORE] == row[SCORE]]
    if not scores:
        return "."
    return f" {median(scores):g} halves the first {len(scores)}, which run from {min(scores):g} to {max(scores):g}."


def _have_prompts(rows: Iterable[Row]) -> bool:
    """Whether at least half of the rows have a prompt, so that a row without one is dropped."""
    counts = Counter(has_question(row) for row in rows)
    return counts[True] >= max(counts[False], 1)


def _is_implicit(row: Row, one: Pair | Feedback) -> bool:
    """Whether the prompt is the common start of both replies."""
    return isinstance(one.prompt, str) and row.get("prompt") is None


def _notes(row: Row, one: Pair | Feedback) -> Iterator[str]:
    if _is_implicit(row, one):
        yield "the prompt is the common start of both replies: no column with a prompt was found"
    replies = (one.chosen, one.rejected) if isinstance(one, Pair) else (one.completion,)
    yield from notes_of(row, one.prompt, replies)


_KINDS = {str: "text", list: "list", dict: "object", bool: "true or false", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)
