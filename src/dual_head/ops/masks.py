"""The attention mask of guides that look back, for every kind of cache.

Built from the padding mask and the cache's length only; ahead of the step where a compiled step needs it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

PARTS = 3  # of a pair: prompt, chosen response, rejected response
PADDING = -1  # the part of a token that only fills a row


def causal_mask(
    padding: Tensor | None, length: int, cache: Cache | None, *, guide_layer: int, device: torch.device
) -> Tensor | None:
    """bool [B or 1, 1, T, K]: query i sees key j <= past + i that is not padding, and always itself.

    padding: [B, past + T] of ones and zeros, or None; length: T; guide_layer: the cache's first layer of the
    guides. None where plain causal attention over the T tokens is right.

        padding    [ 0 1 1 1 ]        one query, at token 3 of a cache with room for 6
        allowed    [ . x x x . . ]    what is written so far, less the padding
    """
    past = 0 if cache is None else cache.get_seq_length()
    width = length
    if cache is not None:
        width = cache.get_mask_sizes(length, guide_layer)[0]
        # A dynamic layer of a guide that is off stays empty; a static one is as wide as it will ever be.
        width = max(width, past + length) if isinstance(past, int) else width
    if padding is None and isinstance(past, int) and (past == 0 or length == 1) and width == past + length:
        return None
    if padding is not None and isinstance(past, int) and length == 1 and width == past + 1:
        # A step of decoding: all tokens but padding, and the token itself.
        return F.pad(padding[:, :-1].bool(), (0, 1), value=True)[:, None, None]
    queries = torch.arange(length, device=device)[:, None] + past
    keys = torch.arange(width, device=device)[None, :]
    allowed = (keys <= queries)[None, None]
    if padding is not None:
        tokens = F.pad(padding.bool(), (0, width - padding.shape[1]), value=True)
        # A padding query that may look at nothing would be NaN, so each may look at itself.
        allowed = allowed & (tokens[:, None, None, :] | (keys == queries))
    return allowed


def branch_mask(parts: Tensor) -> Tensor:
    """bool [R, 1, T, T] for rows of [prompt | chosen | rejected]: both responses see their prompt, neither the other.

    parts [R, T]: PARTS k for the prompt of a row's k-th pair, then what goes on from it; PADDING sees itself.

        parts   [p p p | c c | r r | p p | c | r | . .]     of two pairs in a row: 0 0 0 1 1 2 2 3 3 4 5 and padding
        r sees   x x x         x x                          its prompt and itself, as if c were not there
    """
    queries, keys = parts[:, None, :, None], parts[:, None, None, :]
    columns = torch.arange(parts.shape[1], device=parts.device)
    return (columns[:, None] >= columns) & ((keys == queries) | (keys == queries - queries % PARTS))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a mask is True and the least finite number elsewhere: what every kind of attention can add."""
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def position_mask(queries: Tensor, keys: Tensor, visible: Tensor, window: int | None = None) -> Tensor:
    """bool [B, 1, T, K]: a query sees visible keys at its position or before, at most `window` - 1 before.

    queries [B, T] and keys [B, K]: positions; visible: bool [B, K]. By positions rather than columns, so keys may stand
    in any order, with gaps among them.
    """
    allowed = visible[:, None, :] & (keys[:, None, :] <= queries[:, :, None])
    if window is not None:
        allowed = allowed & (keys[:, None, :] > queries[:, :, None] - window)
    return allowed[:, None]


def layer_masks(config: Any, dtype: torch.dtype, mask: Callable[..., Tensor]) -> Any:
    """Additive masks as a decoder of that config takes them: one, or {kind of layer: mask} where its layers differ.

    mask: makes the bool mask [B, 1, T, K] of layers that look back `window` tokens, or all of them.
    """
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    full = additive(mask(), dtype)
    if window is None:
        return full
    sliding = additive(mask(window), dtype)
    return {"full_attention": full, "sliding_attention": sliding} if getattr(text, "layer_types", None) else sliding
