"""What judges share: judges that score each reply by itself and compare the scores, and batches for those that read.

A judge's class has `form`, how it is written, its file's name first; `Options`, a dataclass; and is made of what stands
behind the name and of its options: `kind(where, options)`.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from dual_head.data import Cut, Message
from dual_head.errors import DualHeadError
from dual_head.evaluate.types import Comparison, Question, Replies, Verdict
from dual_head.model.generate import Prompt

TIE = 1e-9  # scores that differ by less are equal: sums of tenths differ in their last bits
WINDOW = 16  # batches sorted by length together: long enough to save padding, short enough to keep what was judged
NO_ANSWER = "no answer: "  # begins the flaw of a verdict that is worth asking for again

Shown = tuple[Prompt, str]  # a prompt, or the conversation so far, and the reply to it, a `Cut` where it has no end


@dataclass(frozen=True)
class NoOptions:
    """A judge that takes no options."""


def chosen_device(name: str) -> torch.device:
    """The device of a name; "auto" is the accelerator where there is one. Errors: no such device."""
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise DualHeadError(f"'{name}' is not a device. Give auto, cpu, cuda or cuda:1.") from error


def batches_by_length(lengths: Mapping[int, int], size: int) -> Iterator[list[int]]:
    """Cut {index: tokens} into batches of `size` indices of about the same length, the shortest first."""
    order = sorted(lengths, key=lambda index: lengths[index])
    return (order[first : first + size] for first in range(0, len(order), size))


def shown_turns(question: Question, replies: Replies) -> list[Shown]:
    """Each reply with the conversation that it answers: the prompt itself in the first turn."""
    require_whole(question, replies)
    prompt = question.prompt
    turns: list[Shown] = [(prompt, replies[0])]
    talk: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    for follow_up, before, reply in zip(question.follow_ups, replies, replies[1:], strict=False):
        talk = [*talk, {"role": "assistant", "content": before}, {"role": "user", "content": follow_up}]
        turns.append((talk, reply))
    return turns


def require_whole(question: Question, replies: Replies) -> None:
    """Refuse an answer that lacks a reply to a turn of its question, or has one too many."""
    if len(replies) != len(question.asked):
        raise DualHeadError(
            f"Question '{question.id}' has {len(question.asked)} turns and an answer to it {len(replies)} replies. "
            "Answer every turn, or leave the question out for every system."
        )


class ScoreJudge(ABC):
    """A judge whose verdict is a number for each reply: the higher one is preferred, equal ones tie.

        value(first, second) = 1 where s(first) > s(second), 0 where it is less, 0.5 where |difference| < 1e-9

    The score of an answer of several turns is the mean of its replies', each read after the turns before it. The
    order of two answers cannot matter.
    """

    name: str
    identity: str
    symmetric = True

    def require(self, questions: Sequence[Question], kinds: Sequence[str]) -> None:
        """Any reply has a score, as far as can be told before there is one."""
        del questions, kinds

    @abstractmethod
    def scores(self, shown: Sequence[Shown]) -> Iterator[tuple[int, float | str]]:
        """Score replies, in any order: (index, number), or (index, why there is none)."""

    def grade(self, answers: Sequence[tuple[Question, Replies]]) -> Iterator[tuple[int, Verdict]]:
        """Give each answer the mean score of its replies; a text that is there twice is scored once."""
        places: dict[str, list[tuple[int, int]]] = {}
        texts: dict[str, Shown] = {}
        scores: list[dict[int, float | str]] = [{} for _ in answers]
        for index, (question, replies) in enumerate(answers):
            for turn, text in enumerate(shown_turns(question, replies)):
                key = json.dumps([text, isinstance(text[1], Cut)])
                texts[key] = text
                places.setdefault(key, []).append((index, turn))
        keys = list(texts)
        for number, score in self.scores(list(texts.values())):
            for index, turn in places[keys[number]]:
                scores[index][turn] = score
                if len(scores[index]) == len(answers[index][1]):
                    yield index, _graded([scores[index][turn] for turn in sorted(scores[index])])

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Verdict]]:
        """Prefer the answer of the higher score, as soon as both are known."""
        answers = [(c.question, replies) for c in comparisons for replies in (c.first, c.second)]
        grades: dict[int, Verdict] = {}
        for number, verdict in self.grade(answers):
            grades[number] = verdict
            first, second = number - number % 2, number - number % 2 + 1
            if first in grades and second in grades:
                yield number // 2, _preferred(grades.pop(first), grades.pop(second))


def _graded(scores: list[float | str]) -> Verdict:
    flaws = [score if isinstance(score, str) else f"the score is {score}" for score in scores if not _finite(score)]
    if flaws:
        return Verdict(None, flaw=flaws[0])
    numbers = [float(score) for score in scores]
    return Verdict(sum(numbers) / len(numbers), said=" ".join(f"{number:.6g}" for number in numbers))


def _finite(score: float | str) -> bool:
    return not isinstance(score, str) and math.isfinite(score)


def _preferred(first: Verdict, second: Verdict) -> Verdict:
    for ordinal, verdict in (("first", first), ("second", second)):
        if verdict.value is None:
            return Verdict(None, flaw=f"{ordinal}: {verdict.flaw}")
    assert first.value is not None
    assert second.value is not None
    lead = first.value - second.value
    value = 0.5 if abs(lead) < TIE else float(lead > 0)
    return Verdict(value, said=f"{first.value:.6g} against {second.value:.6g}")
