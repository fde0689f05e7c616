"""Attention of a step of many requests: each with its own keys only, where one product would compare all with all.

tokens of a step   [ p p p | c | p p ]       queries of three requests, side by side
keys               [ k k k | k k k k k | k k ]
compared              3x3     1x5     2x2    and not 6 x 10, of which a mask would take most away again
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AttentionByRequest(TorchFunctionMode):
    """While it is entered, `scaled_dot_product_attention` over the tokens of a step goes request by request.

    queries, keys: where each request's tokens begin and end in the step and in its keys, n + 1 places. Calls of other
    sizes are left as they are, as are models whose attention is another function. The mask is read as it is given, so
    the result is that of one product, up to rounding.
    """

    def __init__(self, queries: Sequence[int], keys: Sequence[int]):
        super().__init__()
        self.slices = [(slice(*q), slice(*k)) for q, k in zip(pairwise(queries), pairwise(keys), strict=True)]
        self.sizes = (queries[-1], keys[-1])

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take apart the one call that this is about."""
        del types
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **options: Any
    ) -> Tensor:
        attention = F.scaled_dot_product_attention
        if attn_mask is None or (query.shape[-2], key.shape[-2]) != self.sizes or attn_mask.shape[-2:] != self.sizes:
            return attention(query, key, value, attn_mask, *more, **options)
        parts = [
            attention(query[..., q, :], key[..., k, :], value[..., k, :], attn_mask[..., q, k], *more, **options)
            for q, k in self.slices
        ]
        return torch.cat(parts, -2)
