"""The pages of a running batch as a step's models and guides see them: a cache of the tokens of all its requests.

    step of prompts   [ p p p p | c | p p ]   one row of everything; through a mask each token looks at its own request
    step of tokens    [ c ] [ c ] [ c ]       a row for each request, which looks at its own keys only

In a step of prompts, a mask takes away the keys of other requests; on a processor they are not compared at all.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from dual_head.backbone.cache import CacheSlot, SpecialLayers
from dual_head.serve.attention import AttentionByRequest

FULL = "full_attention"
Shape = tuple[int, int]  # heads, width of a head


class Pages(Cache):
    """One row of all tokens; options are what transformers' paged cache reads of a step."""

    def __init__(self, cache: Any, options: dict[str, Any]):
        super().__init__(layers=[])
        self._pages, self._options = cache, options

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """Write keys and values [1, heads, T, width], and return those of all requests, one after the other."""
        del args, kwargs
        # The cache writes into its options, so that every call gets a copy.
        return self._pages.update(key_states, value_states, layer_idx, dict(self._options))

    @property
    def have_rows(self) -> bool:
        """Whether all layers look at everything, and there is something to look at."""
        return list(self._options["cu_seq_lens_k"]) == [FULL] and self._options["read_index"][0].numel() > 0

    def attention(self) -> AbstractContextManager[Any]:
        """While it is entered, tokens are compared with the keys of their request: on a processor, where it was timed.

        Where layers look at windows, their keys are others, and masks alone keep requests apart.
        """
        queries, keys = self._options["cu_seq_lens_q"], self._options["cu_seq_lens_k"]
        if list(keys) != [FULL] or queries.device.type != "cpu" or len(queries) == 2:
            return nullcontext()
        return AttentionByRequest(queries.tolist(), keys[FULL].tolist())

    def by_row(self) -> "RowPages":
        """The same for a step of one token of each request."""
        return RowPages(self._pages, self._options)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are told, and a step has no length of its own."""
        del layer_idx
        return 0


class RowPages(Pages):
    """A row of one token for each of n requests, whose layers all look at everything.

    read     [ 4 5 6 | 9 9 9 ]      places of three keys of the first request, and one of the second
    visible  [ 1 1 1 | 1 0 0 ]
    """

    def __init__(self, cache: Any, options: dict[str, Any]):
        super().__init__(cache, options)
        (read,), (self._write,), (ends,) = (
            options["read_index"],
            options["write_index"],
            options["cu_seq_lens_k"].values(),
        )
        lengths = ends.diff()
        columns = torch.arange(int(lengths.max()), device=read.device)
        self.visible = columns < lengths[:, None]
        places = read[:1].repeat(self.visible.shape)  # what is not looked at is any place, so that it is a number
        places[self.visible] = read
        self._read = places.flatten()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """Write keys and values [n, heads, 1, width], and return those of each request [n, heads, longest, width]."""
        del args, kwargs
        stored = self._pages.layer_to_allocator[layer_idx]
        kept = stored.update(key_states[:, :, 0], value_states[:, :, 0], layer_idx, self._read, self._write)
        keys, values = (x.unflatten(0, self.visible.shape).transpose(1, 2) for x in kept)
        return keys, values

    def attention(self) -> AbstractContextManager[Any]:
        """As it is: each request has a row."""
        return nullcontext()

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to scores, [n, 1, 1, longest]."""
        hidden = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
        return hidden.masked_fill_(~self.visible, torch.finfo(dtype).min)[:, None, None]


class PagedSlot(CacheSlot):
    """One guide's part of the pages: each of its layers is cut into as many layers of the backbone's shape as it takes.

    keys of a token, heads x width       [ 0 0 0 0 | 1 1 1 1 | 2 2 2 2 ]
    two layers of the backbone's shape   [ 0 0 0 0   1 1 1 1 ] [ 2 2 2 2   . . . . ]        . zeros

    dtype: of the pages. A guide may have another, and its numbers come back as they were: see `as_stored`. shapes: of
    keys as they are stored.
    """

    def __init__(
        self, pages: Pages, first_layers: Sequence[int], shapes: Sequence[Shape], page: Shape, dtype: torch.dtype
    ):
        super().__init__(pages, first_layers[0])
        vars(self).update(_first=first_layers, _shapes=shapes, _page=page, _dtype=dtype)

    _first: Sequence[int]
    _shapes: Sequence[Shape]
    _page: Shape
    _dtype: torch.dtype

    def update(self, keys: Tensor, values: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, heads, T, width] of a step, and return all that its tokens may look at."""
        first, shape = self._first[layer], self._shapes[layer]
        parts = zip(*(self._cut(as_stored(x, self._dtype)) for x in (keys, values)), strict=True)
        kept = [self.cache.update(k, v, first + i) for i, (k, v) in enumerate(parts)]
        return (
            _as_given(_joined([k for k, _ in kept], shape), keys.dtype),
            _as_given(_joined([v for _, v in kept], shape), values.dtype),
        )

    def view(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, count: int, offset: int = 0, special: SpecialLayers | None = None
    ) -> "PagedView":
        """`count` of the guide's layers, after the first `offset`, as a cache that another model can fill."""
        del count, special  # pages hold keys and values, and nothing else
        return PagedView(self, offset)

    def _cut(self, x: Tensor) -> tuple[Tensor, ...]:
        heads, width = self._page
        if x.shape[1] == heads and x.shape[3] == width:
            return (x,)
        flat = x.transpose(1, 2).flatten(2)  # [B, T, heads of the guide * width]
        flat = F.pad(flat, (0, -flat.shape[-1] % (heads * width)))
        return tuple(part.unflatten(-1, self._page).transpose(1, 2) for part in flat.split(heads * width, -1))


def as_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers [..., width] in a dtype of pages, none of them rounded: wide ones as the bits of several narrow ones.

    fp32 in bf16 pages   [ a b ] -> [ a' a" b' b" ]        bf16 in fp32 pages   [ a b ] -> [ a b ]
    """
    if x.dtype == dtype or x.dtype.itemsize < dtype.itemsize:
        return x.to(dtype)
    return x.contiguous().view(dtype)


def _as_given(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What `as_stored` was given."""
    if x.dtype == dtype or x.dtype.itemsize > dtype.itemsize:
        return x.to(dtype)
    return x.contiguous().view(dtype)


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
        """Write into layer `layer_idx` of the view, and return what the step's tokens may look at there."""
        del args, kwargs
        return self._slot.update(key_states, value_states, self._offset + layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0, as of all pages."""
        del layer_idx
        return 0
