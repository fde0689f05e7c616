"""Preference pairs from scored replies to one prompt."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from dual_head.data import Message, Prompt


def conversation(question: str) -> tuple[Message, ...]:
    """One question of a user."""
    return ({"role": "user", "content": question},)


def best_with_worst(prompt: Prompt, replies: Sequence[str], scores: Sequence[float]) -> dict[str, Any] | None:
    """The highest and the lowest scored reply as a row of preferences in TRL's form; None where all score the same.

    Of replies that tie, the first. Errors: not one score to a reply.
    """
    scored = list(zip(scores, replies, strict=True))
    (best, chosen), (worst, rejected) = max(scored, key=itemgetter(0)), min(scored, key=itemgetter(0))
    if best == worst:
        return None
    turns = [dict(turn) for turn in (conversation(prompt) if isinstance(prompt, str) else prompt)]
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": turns} | {name: [{"role": "assistant", "content": str(text)}] for name, text in answers.items()}
