"""Preference pairs from scored replies to one prompt."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from dual_head.data import Cut, Message, Prompt

BRIEFLY = "Answer in one or two sentences."


def brief(question: str) -> str:
    """A question that asks for a short answer: most sampled replies then end, and an end can be learnt."""
    return f"{question.strip()} {BRIEFLY}"


def conversation(question: str) -> tuple[Message, ...]:
    """One question of a user."""
    return ({"role": "user", "content": question},)


def best_with_worst(prompt: Prompt, replies: Sequence[str], scores: Sequence[float]) -> dict[str, Any] | None:
    """The highest and the lowest scored reply as a row of preferences in TRL's form; None where all score the same.

    Of replies that tie, the first. A `Cut` has "finish_reason": "length", as data are read. Errors: not one score to a
    reply.
    """
    scored = list(zip(scores, replies, strict=True))
    (best, chosen), (worst, rejected) = max(scored, key=itemgetter(0)), min(scored, key=itemgetter(0))
    if best == worst:
        return None
    turns = [dict(turn) for turn in (conversation(prompt) if isinstance(prompt, str) else prompt)]
    return {"prompt": turns, "chosen": [_answer(chosen)], "rejected": [_answer(rejected)]}


def _answer(text: str) -> dict[str, str]:
    """A reply as a message; one that was cut says so, since its turn has no end."""
    return {"role": "assistant", "content": str(text)} | ({"finish_reason": "length"} if isinstance(text, Cut) else {})
