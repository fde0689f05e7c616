"""Preference pairs from scored replies to one prompt."""

from collections.abc import Sequence
from typing import Any

from dual_head.data import Prompt


def best_with_worst(prompt: Prompt, replies: Sequence[str], scores: Sequence[float]) -> dict[str, Any] | None:
    """The highest and the lowest scored reply as a row of preferences in TRL's form; None where all score the same.

    Of replies that tie, the first. Errors: not one score to a reply.
    """
    ranked = sorted(zip(scores, replies, strict=True), key=lambda pair: -pair[0])
    (best, chosen), (worst, rejected) = ranked[0], min(ranked, key=lambda pair: pair[0])
    if best == worst:
        return None
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": turns} | {name: [{"role": "assistant", "content": str(text)}] for name, text in answers.items()}
