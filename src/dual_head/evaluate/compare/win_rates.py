"""Counts of what a judge preferred: win rates with intervals, and differences question by question.

Questions are what is independent, so questions are resampled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dual_head.errors import DualHeadError
from dual_head.evaluate.compare.length_control import length_controlled
from dual_head.stats import bootstrap_mean, draws, percentiles, wilson

SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
RESULTS = (*SCORES, "unparsable")
ONE_SIDED = 0.05  # share of answers that must be the longer and the shorter ones for lengths to be controlled for


class Judged(Protocol):
    """What became of two systems' answers to one question, as the first of the two sees it."""

    @property
    def question(self) -> str:
        """Its id."""
        ...

    @property
    def preference(self) -> float | None:
        """How far the first system is preferred: 1 wholly, 0 not at all, None where no verdict could be read."""
        ...

    @property
    def result(self) -> str:
        """One of win, tie, loss and unparsable."""
        ...

    @property
    def inconsistent(self) -> bool:
        """Whether the verdict turned with the order in which the answers were shown."""
        ...


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """How often the first of two systems is preferred.

    rate: (wins + ties / 2) / (wins + ties + losses), in [0, 1]; interval: 95%, questions resampled, or Wilson's where
    one system always wins; p_value: that of an exact two-sided sign test over questions, were neither better;
    length_controlled: the rate had both answers been equally long, None where lengths were not given, or where one
    system's answers are nearly always the longer ones: what length does cannot be told from what they say then
    (`ONE_SIDED`).
    """

    questions: int
    wins: int
    ties: int
    losses: int
    unparsable: int
    inconsistent: int
    rate: float
    interval: tuple[float, float]
    p_value: float
    length_controlled: float | None = None
    length_controlled_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of a - b over the questions that both answered, with its 95% interval."""

    questions: int
    mean: float
    interval: tuple[float, float]

    def text(self, digits: str) -> str:
        """Write it as "mean (low to high)" with signs; digits: a format such as ".3g"."""
        mean, low, high = (f"{number:+{digits}}" for number in (self.mean, *self.interval))
        return f"{mean} ({low} to {high})"


def win_rate(
    outcomes: Sequence[Judged],
    *,
    lengths: Sequence[tuple[int, int]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """Count outcomes: rate = (wins + ties / 2) / (wins + ties + losses); unparsable ones are no part of it.

    lengths: characters of the first and of the second system's answer for each outcome, for the length-controlled
    rate. A question may come more than once, as with several seeds: it is resampled whole.
    Errors: no outcome that could be read; an unknown result; lengths of another number.
    """
    counts = {result: sum(outcome.result == result for outcome in outcomes) for result in RESULTS}
    if sum(counts.values()) < len(outcomes):
        result = next(outcome.result for outcome in outcomes if outcome.result not in counts)
        raise DualHeadError(f"A comparison has the unknown result '{result}'. Known: {', '.join(RESULTS)}.")
    readable = [outcome for outcome in outcomes if outcome.result in SCORES]
    if not readable:
        raise DualHeadError(
            f"None of the {len(outcomes)} comparisons has a verdict that could be read, so there is no win rate. "
            "Read the judge's words, and give it another template, or take another model."
        )
    scores, trials = _by_question(readable)
    controlled = None if lengths is None else _controlled(outcomes, lengths, seed)
    return WinRate(
        questions=len({outcome.question for outcome in outcomes}),
        wins=counts["win"],
        ties=counts["tie"],
        losses=counts["loss"],
        unparsable=counts["unparsable"],
        inconsistent=sum(outcome.inconsistent for outcome in outcomes),
        rate=(counts["win"] + counts["tie"] / 2) / len(readable),
        interval=_ratio_interval(scores, trials, resamples, seed),
        p_value=sign_test(int((scores > trials / 2).sum()), int((scores < trials / 2).sum())),
        length_controlled=controlled and controlled.rate,
        length_controlled_interval=controlled and controlled.interval,
    )


def paired_difference(
    scores_a: Mapping[str, float | None], scores_b: Mapping[str, float | None], *, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of a - b over questions {id: score}, with its 95% bootstrap interval; questions are resampled in pairs.

    A question whose score is None for either is left out. Errors: no scores; questions that only one of the two has; a
    score that is not finite.
    """
    gaps = {id for scores in (scores_a, scores_b) for id, score in scores.items() if score is None}
    a, b = ({i: s for i, s in scores.items() if s is not None and i not in gaps} for scores in (scores_a, scores_b))
    if not a and not b:
        raise DualHeadError("There are no scores to compare. Give at least one question's.")
    if ids := sorted(a.keys() ^ b.keys()):
        ordinal = "second" if ids[0] in a else "first"
        raise DualHeadError(
            f"{len(ids)} questions have a score in only one of the two; the {ordinal} lacks '{ids[0]}'. Both must "
            "answer the same questions: run the one that is incomplete again, or leave the question out of both."
        )
    if ids := [id for id in a if not (math.isfinite(a[id]) and math.isfinite(b[id]))]:
        raise DualHeadError(
            f"A score of question '{ids[0]}' is not finite: {a[ids[0]]} and {b[ids[0]]}. Look at what scored it, or "
            "leave the question out of both."
        )
    differences = [a[id] - b[id] for id in sorted(a)]
    return Difference(
        questions=len(differences),
        mean=math.fsum(differences) / len(differences),
        interval=bootstrap_mean(differences, resamples=resamples, seed=seed),
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p = min(1, 2 P(X <= min(wins, losses))), X ~ Binomial(wins + losses, 1/2); ties are left out."""
    trials = wins + losses
    ways = tail = 1  # of no success, then of each number of them
    for k in range(min(wins, losses)):
        ways = ways * (trials - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**trials)


def _by_question(outcomes: Sequence[Judged]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of scores and number of outcomes of each question."""
    places = {id: i for i, id in enumerate(dict.fromkeys(outcome.question for outcome in outcomes))}
    at = [places[outcome.question] for outcome in outcomes]
    scores = np.bincount(at, [SCORES[outcome.result] for outcome in outcomes])
    return scores.astype(np.float64), np.bincount(at).astype(np.float64)


def _ratio_interval(
    scores: NDArray[np.float64], trials: NDArray[np.float64], resamples: int, seed: int
) -> tuple[float, float]:
    if scores.sum() in (0.0, trials.sum()):
        # Every draw is the same then, and three wins of three would be as sure as three hundred.
        return wilson(float((scores > 0).sum()), len(scores))
    blocks = draws(len(scores), resamples=resamples, seed=seed)
    return percentiles(np.concatenate([scores[i].sum(1) / trials[i].sum(1) for i in blocks]))


def one_sided(lengths: Sequence[tuple[int, int]]) -> bool:
    """Whether one of two systems gives nearly all of the longer answers."""
    longer, shorter = sum(a > b for a, b in lengths), sum(a < b for a, b in lengths)
    return longer + shorter > 0 and min(longer, shorter) < ONE_SIDED * len(lengths)


def _controlled(outcomes: Sequence[Judged], lengths: Sequence[tuple[int, int]], seed: int):
    if len(lengths) != len(outcomes):
        raise DualHeadError(
            f"There are {len(outcomes)} comparisons and lengths of {len(lengths)}. Give the two lengths of each."
        )
    rows = [
        (outcome.question, outcome.preference, *pair)
        for outcome, pair in zip(outcomes, lengths, strict=True)
        if outcome.preference is not None
    ]
    questions, preferences, first, second = zip(*rows, strict=True)
    if one_sided(list(zip(first, second, strict=True))):
        return None
    return length_controlled(preferences, first, second, questions=questions, seed=seed)
