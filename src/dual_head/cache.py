"""A guide's part of the generation cache: a slot of layers, seen as a cache of their own where a model fills it.

Everything that reorders, crops, repeats or resets the whole cache does so to the guides' layers as well,
because they are the same layer objects. It knows no guide and no model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True)
class CacheSlot:
    """One guide's layers of the generation cache, from `first_layer` on."""

    cache: Cache
    first_layer: int

    def update(self, keys: Tensor, values: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, width] to the guide's own `layer`, and return all of them."""
        return self.cache.update(keys, values, self.first_layer + layer)

    def view(self, count: int, offset: int = 0) -> "LayerView":
        """`count` of the guide's layers, after the first `offset`, as a cache that another model can fill."""
        return LayerView(self.cache, self.first_layer + offset, count)


class LayerView(Cache):
    """Some layers of a cache, numbered from 0: what is stored here is stored there."""

    def __init__(self, cache: Cache, first: int, count: int):
        if cache.layer_class_to_replicate is not None:  # such a cache grows as it is filled
            while len(cache.layers) < first + count:
                cache.layers.append(cache.layer_class_to_replicate())  # pyright: ignore[reportArgumentType]
        super().__init__(layers=cache.layers[first : first + count])
        self._whole, self._first = cache, first

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append to layer `layer_idx` of the view; the whole cache moves offloaded layers in and out."""
        return self._whole.update(key_states, value_states, self._first + layer_idx, *args, **kwargs)


class Lookahead(Cache):
    """Stores the first `new` tokens it is given in a cache; of the others it only appends to what it returns.

    Many continuations of one prefix can then share its keys and values in one forward, the one that reads the
    prefix's own new tokens: each attends to the prefix and, through the mask given with it, to itself only.
    """

    def __init__(self, cache: Cache, new: int = 0):
        super().__init__(layers=[DynamicLayer() for _ in cache.layers])
        self._prefix, self._new = cache, new

    def width(self) -> int:
        """How many stored tokens the new ones will look at, places not yet written among them."""
        return self._prefix.get_mask_sizes(self._new, 0)[0]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Return the stored keys and values followed by those that only look ahead, along the tokens."""
        stored: Any = self._prefix.layers[layer_idx] if layer_idx < len(self._prefix.layers) else None
        if self._new and type(stored) is DynamicLayer:
            # It makes room by copying what it holds. So everything goes in, and what looks ahead is cut off again.
            both = self._prefix.update(key_states, value_states, layer_idx, *args, **kwargs)
            stored.crop(self._new - key_states.shape[-2])
            return both
        keys, values = key_states[:, :, : self._new], value_states[:, :, : self._new]
        if self._new:
            keys, values = self._prefix.update(keys, values, layer_idx, *args, **kwargs)
        else:
            keys, values = stored.keys, stored.values
        ahead = key_states[:, :, self._new :], value_states[:, :, self._new :]
        return torch.cat([keys, ahead[0]], -2), torch.cat([values, ahead[1]], -2)
