"""A guide's part of the generation cache: a slot of layers, seen as a cache of their own where a model fills it.

Everything that reorders, crops, repeats or resets the whole cache does so to the guides' layers as well,
because they are the same layer objects. It knows no guide and no model.

    layers of one cache    [ 0 .. n-1 backbone | n .. guide "a" | .. guide "b" ]
    CacheSlot("a")                             [ 0 .. ]                             the same objects, numbered from 0

Four caches over those layers, of which transformers has none; all of them append through `GrowingKV`:

    LayerView       some layers, for the model of one guide
    StackedCache    a layer of several models at once, for their joint forward
    PromptedCache   the same, behind keys of a prompt that every row reads and that is stored once
    PrefixCache     all layers, and continuations that are read once and not stored
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64  # tokens that fit behind the others before the tensors are allocated again

KeysValues = tuple[Tensor, Tensor]  # each [rows, heads, T, width]


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
        layer: Any = self.layers[layer_idx]
        if grows(layer, self._whole):
            return append([layer], key_states, value_states)
        return self._whole.update(key_states, value_states, self._first + layer_idx, *args, **kwargs)


def offloaded(cache: Cache) -> bool:
    """Whether layers are somewhere else between updates, so that only the cache itself may touch them."""
    return offloaded(cache._whole) if isinstance(cache, LayerView) else cache.offloading


def grows(layer: Any, cache: Cache) -> bool:
    """Whether a layer of that cache, or of a view of it, is a plain one that holds something, and no gradient flows."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(layer) is not DynamicLayer:
        return False
    return layer.get_seq_length() > 0 and not offloaded(cache)


class GrowingKV:
    """Keys and values of layers that grow together, one below the other, in tensors with room for more tokens.

        layer of the backbone   [ k k k k | . . . . ]      . columns not yet written: SPARE
        layer of the guide      [ k k k k | . . . . ]      the layers hold views of the first `length` columns

    A dynamic layer copies all it holds for every token. Here a token is written behind the others, and what the
    layers hold are views, [B, heads, T, width] of [layers B, heads, length + spare, width]. A view that was handed out
    never changes: only columns behind it are written, and only while the layers still hold the views of the last time.
    What was cropped, reordered, copied or filled by others is moved into new tensors.

    front: keys and values [layers, heads, P, width] that stand before all others, and are no layer's.
    """

    def __init__(self, layers: Sequence[Any], new: int, front: KeysValues | None = None):
        self.length: int = layers[0].keys.shape[-2]
        self._start = 0 if front is None else front[0].shape[-2]
        self._keys, self._values = (
            self._with_spare([getattr(layer, name) for layer in layers], new, None if front is None else front[i])
            for i, name in enumerate(("keys", "values"))
        )
        self._views = [(layer.keys, layer.values) for layer in layers]

    def _with_spare(self, parts: list[Tensor], new: int, front: Tensor | None) -> Tensor:
        (rows, heads, _, width), start = parts[0].shape, self._start
        buffer = parts[0].new_empty(rows * len(parts), heads, start + self.length + new + SPARE, width)
        for i, (layer_rows, part) in enumerate(zip(buffer.chunk(len(parts)), parts, strict=True)):
            layer_rows[:, :, start : start + self.length] = part
            if front is not None:
                layer_rows[:, :, :start] = front[i]
        return buffer

    def is_of(self, layers: Sequence[Any], new: int) -> bool:
        """Whether the layers still hold the views that were handed out last, and `new` more tokens fit."""
        if len(layers) != len(self._views):
            return False
        for layer, (keys, values) in zip(layers, self._views, strict=True):
            if layer.keys is not keys or layer.values is not values:
                return False
        read_only = self._keys.is_inference() and not torch.is_inference_mode_enabled()
        return not read_only and self._start + self.length + new <= self._keys.shape[-2]

    def append(self, layers: Sequence[Any], keys: Tensor, values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Write keys and values [layers B, heads, T, width], of which the layers keep the first `keep`; return all."""
        new, start = keys.shape[-2], self._start  # once a layer and token, so with as few calls of torch as can be
        self._keys.narrow(2, start + self.length, new).copy_(keys)
        self._values.narrow(2, start + self.length, new).copy_(values)
        all_keys, all_values = (x.narrow(2, 0, start + self.length + new) for x in (self._keys, self._values))
        self.length += keep
        views = [x if keep == new and not start else x.narrow(2, start, self.length) for x in (all_keys, all_values)]
        count = len(layers)
        self._views = [tuple(views)] if count == 1 else list(zip(*(x.chunk(count) for x in views), strict=True))
        for layer, (layer_keys, layer_values) in zip(layers, self._views, strict=True):
            layer.keys, layer.values = layer_keys, layer_values
        return all_keys, all_values


def append(
    layers: Sequence[Any], keys: Tensor, values: Tensor, keep: int | None = None, front: KeysValues | None = None
) -> tuple[Tensor, Tensor]:
    """Append to layers of equal lengths that hold something, without a gradient, as `GrowingKV.append` does.

    The tensors live on the first of the layers, for as long as it does; front: see `GrowingKV`.
    """
    first, new = layers[0], keys.shape[-2]
    growing: GrowingKV | None = vars(first).get("growing")
    if growing is None or not growing.is_of(layers, new):
        growing = first.growing = GrowingKV(layers, new, front)
    return growing.append(layers, keys, values, new if keep is None else keep)


class StackedCache(Cache):
    """Layers of several models that run in one forward, rows [B of the first | B of the second | ...].

        layer i of the forward   [ layer i of the backbone; layer i of guide "a"; ... ]      one below the other

    groups: for each layer of the forward, the layer of every model. They stay layers of the cache they come from.
    """

    def __init__(self, groups: Sequence[Sequence[DynamicLayer]]):
        super().__init__(layers=[group[0] for group in groups])
        self._groups = groups

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append to layer `layer_idx` of every model, and return what all of them hold."""
        del args, kwargs  # of other kinds of layers
        return append(self._groups[layer_idx], key_states, value_states)


class PromptedCache(Cache):
    """Caches of several parts whose rows stand one below the other, behind a prompt's keys that all rows of one share.

        part "a"   [ a a a | k k k k ]    a: keys of its prompt, stored once for all rows and never in a cache
        part "b"   [ . b b | k k k k ]    k: keys of the tokens, in the part's own layers

    front: for each layer, keys and values [parts, heads, P, width].
    """

    def __init__(self, parts: Sequence[Cache], front: Sequence[KeysValues]):
        super().__init__(layers=parts[0].layers)
        self._parts, self._front = parts, front

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """How many tokens come before the next one, the prompt's among them."""
        return super().get_seq_length(layer_idx) + self._front[0][0].shape[-2]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append to layer `layer_idx` of every part, and return the prompt's keys and values followed by all of them."""
        count, front = len(self._parts), self._front[layer_idx]
        layers: list[Any] = [part.layers[layer_idx] for part in self._parts]
        if all(grows(layer, part) for layer, part in zip(layers, self._parts, strict=True)):
            return append(layers, key_states, value_states, front=front)
        chunks = zip(self._parts, key_states.chunk(count), value_states.chunk(count), strict=True)
        stored = [part.update(k, v, layer_idx, *args, **kwargs) for part, k, v in chunks]
        rows = len(key_states) // count
        keys, values = (
            torch.cat([x.repeat_interleave(rows, 0), torch.cat([part[i] for part in stored])], -2)
            for i, x in enumerate(front)
        )
        return keys, values


class PrefixCache(Cache):
    """Stores the first `new` tokens of a forward in a cache; of the others it only appends to what it returns.

        keys   [ p p p | n | c c c ]        p stored before, n stored now, c continuations, gone after the forward

    Many continuations of one prefix can then share its keys and values in one forward, the one that reads the
    prefix's own new tokens: each attends to the prefix and, through its mask, to itself only.
    """

    def __init__(self, cache: Cache, new: int = 0):
        super().__init__(layers=[DynamicLayer() for _ in cache.layers])
        self._prefix, self._new = cache, new

    def width(self) -> int:
        """How many stored tokens the new ones will look at, places not yet written among them."""
        return self._prefix.get_mask_sizes(self._new, 0)[0]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Return the stored keys and values followed by those that only look ahead, along the tokens."""
        layer: Any = self._prefix.layers[layer_idx] if layer_idx < len(self._prefix.layers) else None
        if self._new and grows(layer, self._prefix):
            return append([layer], key_states, value_states, keep=self._new)
        keys, values = key_states[:, :, : self._new], value_states[:, :, : self._new]
        if self._new:
            keys, values = self._prefix.update(keys, values, layer_idx, *args, **kwargs)
        else:
            keys, values = layer.keys, layer.values
        continuation_keys, continuation_values = key_states[:, :, self._new :], value_states[:, :, self._new :]
        return torch.cat([keys, continuation_keys], -2), torch.cat([values, continuation_values], -2)
