"""A step of decoding in which guides that are the backbone with changes run in the backbone's own forward.

    rows of the forward   [ B of the backbone | B of guide "a" | B of guide "b" ]        one new token each

Only a step does: one new token a row, on what a dynamic cache holds, without a gradient. Prompts, static caches and
training run every model by itself. It knows how guides join, and nothing of what they add.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from dual_head.backbone.cache import CacheSlot, LayerView, StackedCache, grows, offloaded
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.joint import JointDecoder
from dual_head.guides import Guide, States


@dataclass(frozen=True)
class Encoded:
    """One pass over tokens: hidden [B, T, d], and the states of every guide that ran, each [B, T, *].

    layers: {index: [B, T, d]} of the backbone; output: what its decoder returned, hidden layers and attentions too.
    """

    hidden: Tensor
    states: dict[str, States] = field(default_factory=dict)
    layers: dict[int, Tensor] = field(default_factory=dict)
    output: Any = None


class JointStep:
    """Runs a backbone and guides that join it in one forward, on a decoder made once for as long as they act."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._guides: tuple[Guide, ...] = ()
        self._decoder: JointDecoder | None = None

    def run(
        self,
        guides: Mapping[str, Guide],
        slots: Mapping[str, CacheSlot],
        *,
        input_ids: Tensor | None,
        mask: Any,
        position_ids: Tensor | None,
        cache: Cache | None,
        layers: tuple[int, ...],
    ) -> Encoded | None:
        """Run the step; None without a guide to join, or for anything but a step of a plain dynamic cache."""
        if not guides or input_ids is None or cache is None or not _is_step(input_ids, mask, position_ids):
            return None
        groups = _groups(cache, self._backbone.num_layers, [slots[name] for name in guides])
        if groups is None:
            return None
        decoder = self._decoder_of(tuple(guides.values()))
        if not decoder.usable():
            return None
        hidden, backbone_layers = decoder.forward(
            input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=StackedCache(groups),
            layers=layers,
        )
        # hidden [ B rows of the backbone | B of guide "a" | B of guide "b" ], and the logits of the same rows
        parts = 1 + len(guides)
        base, *guide_hidden = hidden.chunk(parts)
        base_logits, *guide_logits = decoder.logits(hidden).chunk(parts)
        states = {
            name: guide.from_joint_step(h, z, base_logits)
            for (name, guide), h, z in zip(guides.items(), guide_hidden, guide_logits, strict=True)
        }
        return Encoded(base, states, backbone_layers)

    def _decoder_of(self, guides: tuple[Guide, ...]) -> JointDecoder:
        unchanged = len(guides) == len(self._guides) and all(map(operator.is_, guides, self._guides))
        if self._decoder is None or not unchanged:
            self._guides = guides
            self._decoder = JointDecoder(self._backbone, [{}, *(guide.changes or {} for guide in guides)])
        return self._decoder


def growing_cache(backbone: Backbone, input_ids: Tensor | None, cache: Cache | None) -> Cache | None:
    """See a cache as the backbone fills it in a step beside guides: without a copy of all it holds."""
    if cache is None or input_ids is None or input_ids.shape[1] != 1 or not cache.layers:
        return cache
    return LayerView(cache, 0, backbone.num_layers) if grows(cache.layers[0], cache) else cache


def _is_step(input_ids: Tensor, mask: Any, position_ids: Tensor | None) -> bool:
    """Whether this is one new token a row, with nothing but padding masked."""
    return input_ids.shape[1] == 1 and all(
        x is None or (isinstance(x, Tensor) and x.dim() == 2) for x in (mask, position_ids)
    )


def _groups(cache: Cache, count: int, slots: Sequence[CacheSlot]) -> list[list[DynamicLayer]] | None:
    """For each of the backbone's layers, it and that of every guide; None unless all are plain and hold the same.

    cache of a backbone of 2 layers and guides "a" and "b"   [ 0 1 | 2 3 | 4 5 ]
    groups                                                   [0, 2, 4], [1, 3, 5]
    """
    firsts = (0, *(slot.first_layer for slot in slots))
    if len(cache.layers) < firsts[-1] + count:
        return None
    groups: list[list[Any]] = [[cache.layers[first + i] for first in firsts] for i in range(count)]
    length = cache.get_seq_length()
    plain = all(type(x) is DynamicLayer and x.get_seq_length() == length > 0 for group in groups for x in group)
    return groups if plain and not offloaded(cache) else None
