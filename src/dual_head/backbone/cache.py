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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
)

from dual_head.errors import DualHeadError

SPARE = 64  # tokens that fit behind the others before the tensors are allocated again

KeysValues = tuple[Tensor, Tensor]  # each [rows, heads, T, width]
Front = Callable[[], KeysValues]  # makes keys and values [layers, heads, P, width] that stand before those of a cache


@dataclass(frozen=True)
class SpecialLayers:
    """Which layers of a model of this config keep more than keys and values, and what keeps it: {place: class}.

    More: the state of a convolution or of Mamba, the keys of an index, compressed blocks.
    """

    config: Any
    kinds: Mapping[int, type]

    @classmethod
    def of(cls, config: Any) -> "SpecialLayers":
        """Ask transformers, which makes the layers of a model's cache from its config."""
        kinds = {i: type(layer) for i, layer in enumerate(DynamicCache(config=config).layers)}
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return cls(config, {i: kind for i, kind in kinds.items() if kind not in plain})

    @property
    def recurrent(self) -> list[int]:
        """The places of those that keep a recurrent state, which no mask hides and which cannot forget."""
        return [i for i, kind in self.kinds.items() if issubclass(kind, LinearAttentionCacheLayerMixin)]

    def put_into(self, cache: Cache, first: int) -> None:
        """Let the model's layers of a cache, from `first` on, be of these kinds, where they are not so already.

        Errors: a static cache, whose padding mask is as wide as the cache, and such layers read its last columns.
        """
        place = next(iter(self.kinds), None)
        if place is None or type(cache.layers[first + place]) is self.kinds[place]:  # as in all steps but the first
            return
        if isinstance(cache.layers[first + place], StaticLayer):
            raise DualHeadError(
                "A guide that runs a model with layers of other kinds than plain attention has no room for what they "
                "keep in a static cache. Leave cache_implementation out, or set its alpha to 0."
            )
        made = DynamicCache(config=self.config)
        for i in self.kinds:
            _replace(cache, first + i, made.layers[i])


def _replace(cache: Cache, index: int, layer: Any) -> None:
    cache.layers[index] = layer
    if isinstance(cache, LayerView):
        _replace(cache._whole, cache._first + index, layer)


def counting_layer(cache: Cache, first: int) -> int:
    """The first layer from `first` on that counts tokens, which one of a recurrent state alone does not."""
    counting = (i for i in range(first, len(cache.layers)) if isinstance(cache.layers[i], CacheLayerMixin))
    return next(counting, first)


@dataclass(frozen=True)
class CacheSlot:
    """One guide's layers of the generation cache, from `first_layer` on."""

    cache: Cache
    first_layer: int

    def update(self, keys: Tensor, values: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, width] to the guide's own `layer`, and return all of them."""
        return self.cache.update(keys, values, self.first_layer + layer)

    def view(self, count: int, offset: int = 0, special: SpecialLayers | None = None) -> "LayerView":
        """`count` of the guide's layers, after the first `offset`, as a cache that another model can fill.

        special: the layers of that model which keep more than keys and values.
        """
        return LayerView(self.cache, self.first_layer + offset, count, special)


class LayerView(Cache):
    """Some layers of a cache, numbered from 0: what is stored here is stored there."""

    def __init__(self, cache: Cache, first: int, count: int, special: SpecialLayers | None = None):
        if cache.layer_class_to_replicate is not None:  # such a cache grows as it is filled
            while len(cache.layers) < first + count:
                cache.layers.append(cache.layer_class_to_replicate())  # pyright: ignore[reportArgumentType]
        if special is not None:
            special.put_into(cache, first)
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

    front: of what stands before all others, and is in no layer.
    """

    def __init__(self, layers: Sequence[Any], new: int, front: Front | None = None):
        self.length: int = layers[0].keys.shape[-2]
        fronts = (None, None) if front is None else front()
        self._start = 0 if fronts[0] is None else fronts[0].shape[-2]
        self._keys, self._values = (
            self._with_spare([getattr(layer, name) for layer in layers], new, before)
            for name, before in zip(("keys", "values"), fronts, strict=True)
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
    layers: Sequence[Any], keys: Tensor, values: Tensor, keep: int | None = None, front: Front | None = None
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
    front: for each layer, what stands before the tokens of all rows of a model; no layer stores it.

        rows of a model "a"   [ a a a | k k k k ]    a: keys of a prompt, the same for every row
        rows of a model "b"   [ . b b | k k k k ]    k: of the tokens, in the model's own layers
    """

    def __init__(self, groups: Sequence[Sequence[Any]], front: Sequence[Front] | None = None):
        super().__init__(layers=[group[0] for group in groups])
        self._groups, self._front = groups, front

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append to layer `layer_idx` of every model, and return what all of them hold."""
        del args, kwargs  # of other kinds of layers
        front = None if self._front is None else self._front[layer_idx]
        return append(self._groups[layer_idx], key_states, value_states, front=front)


class PromptedCache(StackedCache):
    """The same of caches of any kind, which may be empty: several models, each behind a prompt of its own."""

    def __init__(self, parts: Sequence[Cache], front: Sequence[Front]):
        super().__init__(list(zip(*(part.layers for part in parts), strict=True)), front)
        self._parts = parts

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append to layer `layer_idx` of every model, and return all keys and values, behind those of its prompt."""
        assert self._front is not None
        if all(grows(layer, part) for layer, part in zip(self._groups[layer_idx], self._parts, strict=True)):
            return super().update(key_states, value_states, layer_idx)
        count = len(self._parts)
        chunks = zip(self._parts, key_states.chunk(count), value_states.chunk(count), strict=True)
        stored = [part.update(k, v, layer_idx, *args, **kwargs) for part, k, v in chunks]
        rows = len(key_states) // count
        keys, values = (
            torch.cat([before.repeat_interleave(rows, 0), torch.cat(after)], -2)
            for before, after in zip(self._front[layer_idx](), zip(*stored, strict=True), strict=True)
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
