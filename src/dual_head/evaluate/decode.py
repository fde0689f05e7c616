"""What generated token ids say: which of them end a reply, and its text."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["pad_token", "reply_text"]


def pad_token(settings: Any, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """The padding token of a generation config, else of the tokenizer, else the first end, else 0."""
    pads = (getattr(settings, "pad_token_id", None), tokenizer.pad_token_id, *ends, 0)
    return next(pad for pad in pads if isinstance(pad, int))


def reply_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], reply: list[int]) -> str:
    """Text of a reply as it continues its prompt; decoded alone, it may lose the space that it begins with.

    prompt "the sky is" | reply " blue" | the reply decoded alone "blue"
    """
    before, text = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, [*prompt, *reply]))
    return text[len(before) :] if text.startswith(before) else str(tokenizer.decode(reply, skip_special_tokens=True))
