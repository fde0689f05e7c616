"""A step of decoding in which guides that are the backbone with changes run in the backbone's own forward.

    rows of the forward   [ B of the backbone | B of guide "a" | B of guide "b" ]        one new token each
    keys of those rows    [ . . . . . t t t t | . . . . t t t t | p p p t t t t ]        p: a prompt of its own

Only a step does: one new token a row, on what a dynamic cache holds, without a gradient. Prompts, static caches and
training run every model by itself. It knows how guides join, and nothing of what they add.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from dual_head.backbone.cache import CacheSlot, Front, KeysValues, LayerView, StackedCache, grows, offloaded
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.features import TokenStrength
from dual_head.backbone.joint import JointDecoder, Prompted, Shifts
from dual_head.guides import Guide, States
from dual_head.ops.masks import additive


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
        strengths: Mapping[str, TokenStrength],
    ) -> Encoded | None:
        """Run the step; None without a guide to join, or for anything but a step of a plain dynamic cache.

        strengths: of the guides that steer layers.
        """
        if not guides or input_ids is None or cache is None or not _is_step(input_ids, mask, position_ids):
            return None
        firsts = [slots[name].first_layer + part.layer for name, guide in guides.items() for part in guide.joint_parts]
        groups = _groups(cache, self._backbone.num_layers, firsts)
        if groups is None:
            return None
        decoder = self._decoder_of(tuple(guides.values()))
        if not decoder.usable():
            return None
        rows = [len(input_ids) * len(guide.joint_parts) for guide in guides.values()]
        prompts = [guide.prompted(input_ids, mask, slots[name]) for name, guide in guides.items()]
        front: list[Front] | None = None
        if any(prompts):
            mask, position_ids, front = self._prompted(prompts, rows, input_ids, mask, position_ids, cache)
        shifts: list[Shifts] = [{}]  # of the backbone
        for name, guide in guides.items():
            of_guide = guide.shifts(strengths[name]) if guide.steers_layers else {}
            shifts += [of_guide] * len(guide.joint_parts)
        hidden, backbone_layers = decoder.forward(
            input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=StackedCache(groups, front),
            layers=layers,
            shifts=shifts,
        )
        # hidden [ B rows of the backbone | B of guide "a" | B of guide "b" ], and the logits of the same rows
        base, *guide_hidden = hidden.split([len(input_ids), *rows])
        base_logits, *guide_logits = decoder.logits(hidden).split([len(input_ids), *rows])
        states = {
            name: guide.from_joint_step(h, z, base_logits)
            for (name, guide), h, z in zip(guides.items(), guide_hidden, guide_logits, strict=True)
        }
        return Encoded(base, states, backbone_layers)

    def _decoder_of(self, guides: tuple[Guide, ...]) -> JointDecoder:
        unchanged = len(guides) == len(self._guides) and all(map(operator.is_, guides, self._guides))
        if self._decoder is None or not unchanged:
            self._guides = guides
            changes = [part.changes for guide in guides for part in guide.joint_parts]
            self._decoder = JointDecoder(self._backbone, [{}, *changes])
        return self._decoder

    def _prompted(
        self,
        prompts: Sequence[Prompted | None],
        rows: Sequence[int],
        input_ids: Tensor,
        mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache,
    ) -> tuple[Tensor, Tensor, list[Front]]:
        """Mask [parts B, 1, 1, P + K], positions [parts B, 1] and front of a step in which some parts have a prompt.

        prompts and rows: of every guide. Parts without a prompt see nothing in front.
        """
        batch, past = len(input_ids), cache.get_seq_length()
        width = max(prompt.width for prompt in prompts if prompt)
        plain = F.pad(input_ids.new_ones(batch, past + 1) if mask is None else mask, (width, 0)).bool()
        place = input_ids.new_full((1, 1), past) if position_ids is None else position_ids
        visible, places = [plain], [place.expand(batch, -1)]
        for prompt, count in zip(prompts, rows, strict=True):
            if prompt is None:
                visible.append(plain.repeat(count // batch, 1))
                places.append(places[0].repeat(count // batch, 1))
            else:
                visible.append(F.pad(prompt.visible, (width - prompt.width, 0)))
                places.append(prompt.positions)
        counts = [count // batch for count in rows]
        front = [partial(_front, i, prompts, counts, width) for i in range(self._backbone.num_layers)]
        return additive(torch.cat(visible), self._backbone.lm.dtype)[:, None, None], torch.cat(places), front


def _front(layer: int, prompts: Sequence[Prompted | None], counts: Sequence[int], width: int) -> KeysValues:
    """Keys and values [parts, heads, P, width] in front of that layer: of the backbone and of every guide's parts."""
    template = next(prompt.front[layer] for prompt in prompts if prompt)
    keys, values = (
        torch.cat(
            [_nothing(x, 1, width)]
            + [
                _nothing(x, count, width)
                if prompt is None
                else F.pad(prompt.front[layer][i], (0, 0, width - prompt.width, 0))
                for prompt, count in zip(prompts, counts, strict=True)
            ]
        )
        for i, x in enumerate(template)
    )
    return keys, values


def _nothing(x: Tensor, parts: int, width: int) -> Tensor:
    return x.new_zeros(parts, x.shape[1], width, x.shape[3])


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


def _groups(cache: Cache, count: int, layers: Sequence[int]) -> list[list[DynamicLayer]] | None:
    """For each of the backbone's layers, it and that of every part; None unless all are plain and hold the same.

    layers: the first of each part.

    cache of a backbone of 2 layers and guides "a" and "b"   [ 0 1 | 2 3 | 4 5 ]
    groups                                                   [0, 2, 4], [1, 3, 5]
    """
    firsts = (0, *layers)
    if len(cache.layers) < firsts[-1] + count:
        return None
    groups: list[list[Any]] = [[cache.layers[first + i] for first in firsts] for i in range(count)]
    length = cache.get_seq_length()
    plain = all(type(x) is DynamicLayer and x.get_seq_length() == length > 0 for group in groups for x in group)
    return groups if plain and not offloaded(cache) else None
