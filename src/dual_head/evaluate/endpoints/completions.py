"""A chat completion as a server sends it, read: its text, its tokens. Any of it may be of any type."""

import math
from typing import Any

MOST = 1e12  # a number of tokens or a log-probability beyond it is none


def text_of(content: Any) -> str:
    """What a message says: a text, or the texts among its parts. Errors: TypeError where it is neither."""
    if isinstance(content, list):
        content = "".join([_part(part) for part in content])
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _part(part: Any) -> str:
    """The text of one part, "" for one that is a thought or an image."""
    if isinstance(part, dict):
        part = part.get("text") if part.get("type", "text") == "text" else ""
    if not isinstance(part, str):
        raise TypeError
    return part


def count_of(tokens: Any) -> float:
    """A number of tokens; 0, which is unknown, where something else came."""
    return float(tokens) if isinstance(tokens, int | float) and 0 < tokens < MOST else 0.0


def first_token(logprobs: Any) -> list[tuple[str, float]]:
    """What a reply may begin with, and how likely each is; what is no token with a log-probability is left out."""
    tokens = getattr(logprobs, "content", None)
    if not isinstance(tokens, list) or not tokens:
        return []
    options = getattr(tokens[0], "top_logprobs", None) or [tokens[0]]
    likely = []
    for option in options if isinstance(options, list) else [tokens[0]]:
        token, logprob = getattr(option, "token", None), getattr(option, "logprob", None)
        # Rounding may put a certain token a little above 0; NaN is neither above nor below anything.
        if isinstance(token, str) and isinstance(logprob, int | float) and -MOST < logprob < 1:
            likely.append((token, math.exp(logprob)))
    return likely
