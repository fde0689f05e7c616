"""Verdicts on whole sets of answers: both orders asked for, each verdict kept as it comes, none asked for twice."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dual_head.backbone.fingerprint import digest
from dual_head.data import Cut
from dual_head.errors import DualHeadError
from dual_head.evaluate.judges.base import NO_ANSWER, TIE, require_whole
from dual_head.evaluate.types import Answer, Comparison, Judge, Question, Replies, Verdict
from dual_head.files.lines import add_lines, rows_by_key

__all__ = ["FILE", "Graded", "Judged", "Outcome", "Result", "Usage", "grade_all", "judge_pairs", "spent"]

FILE = "verdicts.jsonl"
EXAMPLES = 3  # question ids that an error names
Result = Literal["win", "tie", "loss", "unparsable"]
Progress = Callable[[int, int], None]  # verdicts there are, verdicts needed
Shown = Comparison | tuple[Question, Replies]


@dataclass(frozen=True)
class Usage:
    """What one verdict cost, under the key of all that it depends on; kept: whether it was read from the file."""

    key: str
    used: Mapping[str, float]
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a judge made of one question, with the costs of its verdicts, whenever they were asked for."""

    question: str
    costs: tuple[Usage, ...] = field(default=(), compare=False, repr=False)

    @property
    def used(self) -> dict[str, float]:
        """The costs together."""
        return _sum(cost.used for cost in self.costs)

    @property
    def kept(self) -> int:
        """How many verdicts were read from the file."""
        return sum(cost.kept for cost in self.costs)


@dataclass(frozen=True, kw_only=True)
class Outcome(Judged):
    """What became of two answers to one question, seen from A.

    orders: how far A is preferred, 0 to 1, where A was read first and where it was read second (one number where one
    order was asked for); None where no verdict could be read, with its flaw in `flaws`. said: the judge's words.
    identical: the replies are the same, which is a tie that no judge was asked about.
    """

    orders: tuple[float | None, ...]
    said: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()
    identical: bool = False

    @property
    def preference(self) -> float | None:
        """How far A is preferred: the mean over the orders; None where one of them has no verdict."""
        return _mean(self.orders)

    @property
    def result(self) -> Result:
        """A's result: a win or a loss only where every order says so. Source: MT-Bench (Zheng et al. 2023)."""
        if self.preference is None:
            return "unparsable"
        sides: set[Result] = {_side(value) for value in self.orders if value is not None}
        return sides.pop() if len(sides) == 1 else "tie"

    @property
    def inconsistent(self) -> bool:
        """Whether the judge preferred A in one order and B in the other."""
        return {"win", "loss"} <= {_side(value) for value in self.orders if value is not None}


@dataclass(frozen=True, kw_only=True)
class Graded(Judged):
    """A judge's grade of one answer; None where none could be read, with its `flaw`.

    grade: the mean of `turns`, one for each reply of the answer; a judge that scores gives one score of them all.
    Source: MT-Bench (Zheng et al. 2023), which averages over turns.
    """

    grade: float | None
    turns: tuple[float | None, ...] = ()
    said: str = ""
    flaw: str = ""


def judge_pairs(
    judge: Judge,
    questions: Sequence[Question],
    a: Mapping[str, Answer],
    b: Mapping[str, Answer],
    *,
    folder: Path | str | None = None,
    both_orders: bool = True,
    on_progress: Progress | None = None,
) -> list[Outcome]:
    """Compare two systems' answers {question id: Answer} question by question; one `Outcome` each, in their order.

    folder: keeps verdicts in `FILE`, one line each, as soon as they are known; a verdict that is there is not asked
    for again. both_orders: ask with A first and with B first; a symmetric judge is asked once. Equal replies tie
    without being shown. Errors: systems that answered different questions, a judge that gives NaN.
    """
    _require_same_questions(questions, a, b)
    orders = 2 if both_orders and not judge.symmetric else 1
    pairs_of: dict[str, list[tuple[str, Comparison]]] = {}
    for question in questions:
        first, second = a[question.id].marked, b[question.id].marked
        require_whole(question, first)
        require_whole(question, second)
        pairs = [] if first == second else [(first, second), (second, first)][:orders]
        pairs_of[question.id] = [(_key(judge, question, *pair), Comparison(question, *pair)) for pair in pairs]
    items = {key: comparison for keyed in pairs_of.values() for key, comparison in keyed}
    verdicts = _ask(judge, judge.compare, items, folder, on_progress, highest=1.0)
    return [_outcome(id, [(key, *verdicts[key]) for key, _ in keyed]) for id, keyed in pairs_of.items()]


def grade_all(
    judge: Judge,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    *,
    folder: Path | str | None = None,
    on_progress: Progress | None = None,
) -> list[Graded]:
    """Grade a system's answers {question id: Answer}; one `Graded` each, in the questions' order; see `judge_pairs`.

    An answer of several turns is graded turn by turn, each with the turns before it; a judge that scores averages over
    turns by itself and is shown the whole.
    """
    _require_same_questions(questions, answers, answers)
    parts_of: dict[str, dict[str, Shown]] = {}
    for question in questions:
        replies = answers[question.id].marked
        require_whole(question, replies)
        parts = [question] if judge.symmetric else question.by_turn
        pairs = [(part, replies[: len(part.asked)]) for part in parts]
        parts_of[question.id] = {_key(judge, *pair): pair for pair in pairs}
    items = {key: part for keyed in parts_of.values() for key, part in keyed.items()}
    verdicts = _ask(judge, judge.grade, items, folder, on_progress, lowest=-math.inf, highest=math.inf)
    return [_graded(id, [(key, *verdicts[key]) for key in keyed]) for id, keyed in parts_of.items()]


def spent(rows: Iterable[Judged]) -> dict[str, float]:
    """What verdicts cost together; one that was kept and serves several systems is counted once."""
    costs: list[Usage] = []
    keys: set[str] = set()
    for cost in (cost for row in rows for cost in row.costs):
        # A verdict without an answer is never kept, and was asked for again.
        if cost.key not in keys or not cost.kept:
            costs.append(cost)
        keys.add(cost.key)
    return _sum(cost.used for cost in costs)


def _sum(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for cost in costs:
        for name, amount in cost.items():
            total[name] = total.get(name, 0) + amount
    return total


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values, None where one is missing."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def _side(value: float) -> Result:
    return "tie" if abs(value - 0.5) < TIE else "win" if value > 0.5 else "loss"


def _graded(question: str, keyed: list[tuple[str, Verdict, bool]]) -> Graded:
    verdicts = [verdict for _, verdict, _ in keyed]
    turns = tuple(verdict.value for verdict in verdicts)
    return Graded(
        question=question,
        grade=_mean(turns),
        turns=turns,
        said="\n\n".join(verdict.said for verdict in verdicts),
        flaw="; ".join(verdict.flaw for verdict in verdicts if verdict.flaw),
        costs=_costs(keyed),
    )


def _costs(keyed: list[tuple[str, Verdict, bool]]) -> tuple[Usage, ...]:
    return tuple(Usage(key, verdict.used, kept) for key, verdict, kept in keyed)


def _outcome(question: str, keyed: list[tuple[str, Verdict, bool]]) -> Outcome:
    if not keyed:
        return Outcome(question=question, orders=(0.5,), identical=True)
    verdicts = [verdict for _, verdict, _ in keyed]
    values = [verdict.value for verdict in verdicts]
    return Outcome(
        question=question,
        # The second verdict is how far B is preferred, which was read first.
        orders=(values[0], *(None if value is None else 1.0 - value for value in values[1:])),
        said=tuple(verdict.said for verdict in verdicts),
        flaws=tuple(verdict.flaw for verdict in verdicts if verdict.flaw),
        costs=_costs(keyed),
    )


def _require_same_questions(questions: Sequence[Question], a: Mapping[str, Answer], b: Mapping[str, Answer]) -> None:
    ids = [question.id for question in questions]
    if not ids:
        raise DualHeadError("There are no questions to judge answers to. Give at least one.")
    if repeats := [id for id, times in Counter(ids).items() if times > 1]:
        raise DualHeadError(f"{len(repeats)} questions are there twice ({_examples(repeats)}). Give each once.")
    for first, second, ordinal in ((a, b, "second"), (b, a, "first")):
        if gaps := [id for id in first if id not in second]:
            raise DualHeadError(
                f"The systems did not answer the same questions: {len(gaps)} of them ({_examples(gaps)}) have no "
                f"answer by the {ordinal} one. Let it answer them, or leave them out for both."
            )
    if gaps := [id for id in ids if id not in a]:
        raise DualHeadError(f"{len(gaps)} questions have no answer ({_examples(gaps)}). Answer or leave them out.")


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(ids[:EXAMPLES]) + (", ..." if len(ids) > EXAMPLES else "")


def _key(judge: Judge, question: Question, *replies: Replies) -> str:
    """Name all that a verdict depends on."""
    prompt = question.prompt if isinstance(question.prompt, str) else list(question.prompt)
    content: list[Any] = [prompt, question.follow_ups, question.category, question.references, replies]
    cuts = [[isinstance(reply, Cut) for reply in turns] for turns in replies]
    content += [cuts] if any(map(any, cuts)) else []
    return digest([judge.identity, *content])


def _ask(
    judge: Judge,
    ask: Callable[[Any], Iterator[tuple[int, Verdict]]],
    items: Mapping[str, Shown],
    folder: Path | str | None,
    on_progress: Progress | None,
    *,
    lowest: float = 0.0,
    highest: float,
) -> dict[str, tuple[Verdict, bool]]:
    """Verdicts on all items: {key: (verdict, whether it was read from the file)}."""
    file = None if folder is None else Path(folder) / FILE
    rows = rows_by_key(file, _verdict) if file else {}
    verdicts = {key: (rows[key], True) for key in items if key in rows}
    keys = [key for key in items if key not in verdicts]
    if file and keys:
        add_lines(file, ())  # refuses a place that cannot be written before anything is asked
    for index, verdict in ask([items[key] for key in keys]) if keys else ():
        value = verdict.value
        if value is not None and not (lowest <= value <= highest and math.isfinite(value)):
            raise DualHeadError(
                f"The judge '{judge.name}' gave {value}. A preference is between 0 and 1 and a grade finite; what "
                "cannot be judged has the value None and a flaw."
            )
        if file and (value is not None or not verdict.flaw.startswith(NO_ANSWER)):
            add_lines(file, [json.dumps({"key": keys[index], "judge": judge.name, **asdict(verdict)})])
        verdicts[keys[index]] = (verdict, False)
        if on_progress is not None:
            on_progress(len(verdicts), len(items))
    if len(verdicts) < len(items):
        raise DualHeadError(
            f"The judge '{judge.name}' gave no verdict on {len(items) - len(verdicts)} of {len(items)}."
        )
    return verdicts


def _verdict(row: Any) -> Verdict:
    return Verdict(row["value"], said=row["said"], flaw=row["flaw"], used=row["used"])
