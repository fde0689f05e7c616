"""A guide's part of the pages of a running batch: whatever the shape of its keys, cut to the backbone's."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from dual_head.backbone.cache import CacheSlot

Shape = tuple[int, int]  # heads, width of a head


class PagedSlot(CacheSlot):
    """One guide's part of the pages: each of its layers is cut into as many layers of the backbone's shape as it takes.

    keys of a token, heads x width       [ 0 0 0 0 | 1 1 1 1 | 2 2 2 2 ]
    two layers of the backbone's shape   [ 0 0 0 0   1 1 1 1 ] [ 2 2 2 2   . . . . ]        . zeros
    """

    def __init__(self, cache: Any, first_layers: Sequence[int], shapes: Sequence[Shape], page: Shape, options: dict):
        super().__init__(cache, first_layers[0])
        vars(self).update(_first=first_layers, _shapes=shapes, _page=page, _options=options)

    _first: Sequence[int]
    _shapes: Sequence[Shape]
    _page: Shape
    _options: dict[str, Any]

    def update(self, keys: Tensor, values: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, heads, T, width] of a step, and return those of all its requests."""
        first, shape = self._first[layer], self._shapes[layer]
        parts: Any = zip(self._cut(keys), self._cut(values), strict=True)
        # The cache writes into its options, so that every call gets a copy.
        kept = [self.cache.update(k, v, first + i, dict(self._options)) for i, (k, v) in enumerate(parts)]
        return _joined([k for k, _ in kept], shape), _joined([v for _, v in kept], shape)

    def view(self, count: int, offset: int = 0) -> "PagedView":  # pyright: ignore[reportIncompatibleMethodOverride]
        """`count` of the guide's layers, after the first `offset`, as a cache that another model can fill."""
        del count
        return PagedView(self, offset)

    def _cut(self, x: Tensor) -> tuple[Tensor, ...]:
        heads, width = self._page
        if x.shape[1] == heads and x.shape[3] == width:
            return (x,)
        flat = x.transpose(1, 2).flatten(2)  # [1, T, heads of the guide * width]
        flat = F.pad(flat, (0, -flat.shape[-1] % (heads * width)))
        return tuple(part.unflatten(-1, self._page).transpose(1, 2) for part in flat.split(heads * width, -1))


def _joined(parts: list[Tensor], shape: Shape) -> Tensor:
    if len(parts) == 1 and (parts[0].shape[1], parts[0].shape[3]) == shape:
        return parts[0]
    flat = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], -1)
    return flat[..., : shape[0] * shape[1]].unflatten(-1, shape).transpose(1, 2)


class PagedView(Cache):
    """Layers of a slot as the cache of a model that runs over the tokens of a step, with the step's own mask."""

    def __init__(self, slot: PagedSlot, offset: int):
        super().__init__(layers=[])
        self._slot, self._offset = slot, offset

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """Write into layer `layer_idx` of the view, and return what all requests of the step hold there."""
        del args, kwargs
        return self._slot.update(key_states, value_states, self._offset + layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are told, and a step has no length of its own."""
        del layer_idx
        return 0
