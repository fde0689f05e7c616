"""Verdicts on whole sets of answers: both orders asked for, each verdict kept as it comes, none asked for twice.

It knows comparisons and what becomes of them; not who judges, nor how verdicts are counted over many questions.
"""

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

__all__ = ["FILE", "Graded", "Outcome", "Result", "Usage", "grade_all", "judge_pairs", "spent"]

FILE = "verdicts.jsonl"
EXAMPLES = 3  # question ids that an error names
Result = Literal["win", "tie", "loss", "unparsable"]
Progress = Callable[[int, int], None]  # verdicts there are, verdicts needed
Shown = Comparison | tuple[Question, Replies]


@dataclass(frozen=True)
class Usage:
    """What one verdict cost, under the key of all that it depends on; kept: it was there from before."""

    key: str
    used: Mapping[str, float]
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of two answers to one question, seen from A.

    orders: how far A is preferred, 0 to 1, where A was read first and where it was read second (one number where one
    order was asked for); None where no verdict could be read, with its flaw in `flaws`. said: the judge's words.
    used: what the verdicts cost, whenever they were asked for; kept: how many were there from before; costs: the same
    verdict by verdict, see `spent`. identical: the replies are the same, which is a tie that nobody was asked about.
    """

    question: str
    orders: tuple[float | None, ...]
    said: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()
    used: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    identical: bool = False
    costs: tuple[Usage, ...] = field(default=(), compare=False, repr=False)

    @property
    def preference(self) -> float | None:
        """How far A is preferred: the mean over the orders; None where one of them has no verdict."""
        read = [value for value in self.orders if value is not None]
        return sum(read) / len(read) if len(read) == len(self.orders) else None

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
class Graded:
    """A judge's grade of one answer; None where none could be read, with its `flaw`. The others: see `Outcome`.

    grade: the mean of `turns`, one for each reply of the answer; of a judge that scores, its one score of them all.
    Source: MT-Bench (Zheng et al. 2023), which averages over turns.
    """

    question: str
    grade: float | None
    turns: tuple[float | None, ...] = ()
    said: str = ""
    flaw: str = ""
    used: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    costs: tuple[Usage, ...] = field(default=(), compare=False, repr=False)


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
    shown = {key: comparison for keyed in pairs_of.values() for key, comparison in keyed}
    verdicts = _ask(judge, judge.compare, shown, folder, on_progress, highest=1.0)
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
        shown_parts = [(part, replies[: len(part.asked)]) for part in parts]
        parts_of[question.id] = {_key(judge, *one): one for one in shown_parts}
    shown = {key: part for keyed in parts_of.values() for key, part in keyed.items()}
    verdicts = _ask(judge, judge.grade, shown, folder, on_progress, lowest=-math.inf, highest=math.inf)
    return [_graded(id, [(key, *verdicts[key]) for key in keyed]) for id, keyed in parts_of.items()]


def spent(judged: Iterable[Outcome | Graded]) -> dict[str, float]:
    """What verdicts cost together: one that was kept and counts for several systems is counted once."""
    used: Counter[str] = Counter()
    counted: set[str] = set()
    for cost in (cost for row in judged for cost in row.costs):
        # One that had no answer is kept nowhere, and was asked for again.
        if cost.key not in counted or not cost.kept:
            used.update(cost.used)  # pyright: ignore[reportArgumentType, reportCallIssue] - counters add floats as well
        counted.add(cost.key)
    return dict(used)


def _side(value: float) -> Result:
    return "tie" if abs(value - 0.5) < TIE else "win" if value > 0.5 else "loss"


def _graded(question: str, keyed: list[tuple[str, Verdict, bool]]) -> Graded:
    verdicts = [verdict for _, verdict, _ in keyed]
    turns = tuple(verdict.value for verdict in verdicts)
    known = [value for value in turns if value is not None]
    return Graded(
        question=question,
        grade=sum(known) / len(known) if len(known) == len(turns) else None,
        turns=turns,
        said="\n\n".join(verdict.said for verdict in verdicts),
        flaw="; ".join(verdict.flaw for verdict in verdicts if verdict.flaw),
        **_bill(keyed),
    )


def _bill(keyed: list[tuple[str, Verdict, bool]]) -> dict[str, Any]:
    """What verdicts cost, as `Outcome` has it."""
    used: Counter[str] = Counter()
    for _, verdict, _ in keyed:
        used.update(verdict.used)  # pyright: ignore[reportArgumentType] - counters add floats as well
    return {
        "used": dict(used),
        "kept": sum(old for _, _, old in keyed),
        "costs": tuple(Usage(key, verdict.used, old) for key, verdict, old in keyed),
    }


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
        **_bill(keyed),
    )


def _require_same_questions(questions: Sequence[Question], a: Mapping[str, Answer], b: Mapping[str, Answer]) -> None:
    ids = [question.id for question in questions]
    if not ids:
        raise DualHeadError("There are no questions to judge answers to. Give at least one.")
    if twice := [id for id, times in Counter(ids).items() if times > 1]:
        raise DualHeadError(f"{len(twice)} questions are there twice ({_examples(twice)}). Give each once.")
    for one, other, which in ((a, b, "second"), (b, a, "first")):
        if missing := [id for id in one if id not in other]:
            raise DualHeadError(
                f"The systems did not answer the same questions: {len(missing)} of them ({_examples(missing)}) have no "
                f"answer by the {which} one. Let it answer them, or leave them out for both."
            )
    if missing := [id for id in ids if id not in a]:
        raise DualHeadError(
            f"{len(missing)} questions have no answer ({_examples(missing)}). Answer or leave them out."
        )


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(ids[:EXAMPLES]) + (", ..." if len(ids) > EXAMPLES else "")


def _key(judge: Judge, question: Question, *replies: Replies) -> str:
    """Name all that a verdict depends on."""
    prompt = question.prompt if isinstance(question.prompt, str) else list(question.prompt)
    shown: list[Any] = [prompt, question.follow_ups, question.category, question.references, replies]
    cut = [[isinstance(reply, Cut) for reply in turns] for turns in replies]
    shown += [cut] if any(map(any, cut)) else []
    return digest([judge.identity, *shown])


def _ask(
    judge: Judge,
    ask: Callable[[Any], Iterator[tuple[int, Verdict]]],
    shown: Mapping[str, Shown],
    folder: Path | str | None,
    on_progress: Progress | None,
    *,
    lowest: float = 0.0,
    highest: float,
) -> dict[str, tuple[Verdict, bool]]:
    """Verdicts on what is shown: {key: (verdict, whether it was kept from before)}."""
    file = None if folder is None else Path(folder) / FILE
    kept = rows_by_key(file, _verdict) if file else {}
    verdicts = {key: (kept[key], True) for key in shown if key in kept}
    missing = [key for key in shown if key not in verdicts]
    if file and missing:
        add_lines(file, ())  # refuses a place that cannot be written before anything is asked
    for index, verdict in ask([shown[key] for key in missing]) if missing else ():
        value = verdict.value
        if value is not None and not (lowest <= value <= highest and math.isfinite(value)):
            raise DualHeadError(
                f"The judge '{judge.name}' gave {value}. A preference is between 0 and 1 and a grade finite; what "
                "cannot be judged has the value None and a flaw."
            )
        if file and (value is not None or not verdict.flaw.startswith(NO_ANSWER)):
            add_lines(file, [json.dumps({"key": missing[index], "judge": judge.name, **asdict(verdict)})])
        verdicts[missing[index]] = (verdict, False)
        if on_progress is not None:
            on_progress(len(verdicts), len(shown))
    if len(verdicts) < len(shown):
        raise DualHeadError(
            f"The judge '{judge.name}' gave no verdict on {len(shown) - len(verdicts)} of {len(shown)}."
        )
    return verdicts


def _verdict(row: Any) -> Verdict:
    return Verdict(row["value"], said=row["said"], flaw=row["flaw"], used=row["used"])
