"""What guides on a real chat model answered, by guide and strength, and the means of it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dual_head.demo.answers import QUESTIONS, Answer

ALPHAS = (-1.0, 0.0, 1.0, 2.0)
STRONG = (3.0, 5.0)  # beyond what guides are measured at
STRONG_QUESTIONS = QUESTIONS[2:5]


@dataclass(frozen=True)
class Findings:
    """Answers to the same questions: {guide: {alpha: answers}}, and of both guides at 1."""

    alone: dict[str, dict[float, list[Answer]]]
    mixed: list[Answer]

    @property
    def names(self) -> list[str]:
        """The guides."""
        return list(self.alone)

    def break_of(self, name: str) -> tuple[float, Answer] | None:
        """The least strength at which a reply of a guide falls apart that held together without it, and that reply."""
        held = {reply.question for reply in self.alone[name][0.0] if reply.collapse is None}
        for alpha, replies in self.alone[name].items():
            for reply in replies:
                if alpha > 0 and reply.question in held and reply.collapse:
                    return alpha, reply
        return None


def rows_of(names: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """Every question without a guide, with each guide at each strength and with all at 1; some at more."""
    rows = [(question, dict.fromkeys(names, 0.0)) for question in QUESTIONS]
    for name in names:
        rows += [(question, {name: alpha}) for alpha in ALPHAS if alpha for question in QUESTIONS]
        rows += [(question, {name: alpha}) for alpha in STRONG for question in STRONG_QUESTIONS]
    if len(names) > 1:
        rows += [(question, dict.fromkeys(names, 1.0)) for question in QUESTIONS]
    return rows


def findings_of(names: Sequence[str], answers: Sequence[Answer]) -> Findings:
    """Sort answers by guide and strength."""
    base = [reply for reply in answers if not any(reply.strengths.values())]
    alone: dict[str, dict[float, list[Answer]]] = {}
    for name in names:
        by_alpha = {alpha: [r for r in answers if r.strengths == {name: alpha}] for alpha in (*ALPHAS, *STRONG)}
        alone[name] = {**by_alpha, 0.0: base}
    mixed = [reply for reply in answers if len(reply.strengths) > 1 and all(reply.strengths.values())]
    return Findings(alone, mixed)


def mean(replies: Sequence[Answer], rule: str) -> float:
    """Mean of what a rule counts."""
    return statistics.fmean(reply.score(rule) for reply in replies)


def kl(replies: Sequence[Answer]) -> float:
    """Mean divergence from the backbone, in nats a reply."""
    return statistics.fmean(reply.kl for reply in replies)
