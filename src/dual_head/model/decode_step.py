"""A step of decoding in which guides that are the backbone with changes run in the backbone's own forward.

Only a step does: one new token a row, on what a dynamic cache holds, without a gradient. Prompts, static caches and
training run every model by itself. It knows which guides can join, and nothing of what they say.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from dual_head.backbone import Backbone
from dual_head.cache import CacheSlot, StackedCache, grows, offloaded
from dual_head.guides import Guide, States
from dual_head.joint import JointDecoder
from dual_head.transfer import Transfer


@dataclass(frozen=True)
class StepOutput:
    """What one forward said: hidden [B, T, d] and layers of the backbone, and states of guides that ran with it."""

    hidden: Tensor
    layers: dict[int, Tensor]
    states: dict[str, States] = field(default_factory=dict)
    output: Any = None  # what the backbone itself returned


class JointSteps:
    """The part of `AlignedModel` that runs guides along with the backbone."""

    backbone: Backbone
    guide: Callable[[str], Guide]
    transfer: Callable[[str], Transfer | None]
    _joint: tuple[tuple[Any, ...], JointDecoder] | None = None  # of whom, and the decoder

    def _joint_step(
        self,
        input_ids: Tensor | None,
        mask: Any,
        position_ids: Tensor | None,
        cache: Cache | None,
        slots: Mapping[str, CacheSlot],
        layers: tuple[int, ...],
    ) -> StepOutput | None:
        """Run the backbone and all guides that can join it in one forward; None where none can."""
        if input_ids is None or cache is None or not _is_step(input_ids, mask, position_ids):
            return None
        joining = [name for name in slots if self._joins(name)]
        groups = _groups(cache, self.backbone.num_layers, [slots[name] for name in joining]) if joining else None
        if groups is None:
            return None
        decoder = self._joint_decoder([self.guide(name) for name in joining])
        if not decoder.usable():
            return None
        hidden, kept = decoder.forward(
            input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=StackedCache(groups), layers=layers
        )
        (base, *owns), (base_logits, *logits) = (x.chunk(1 + len(joining)) for x in (hidden, decoder.logits(hidden)))
        states = {
            name: self.guide(name).from_joint_step(own, own_logits, base_logits)
            for name, own, own_logits in zip(joining, owns, logits, strict=True)
        }
        return StepOutput(base, kept, states)

    def _step_cache(self, input_ids: Tensor | None, cache: Cache | None) -> Cache | None:
        """See a cache as the backbone fills it in a step beside guides: without a copy of all it holds."""
        if cache is None or input_ids is None or input_ids.shape[1] != 1 or not cache.layers:
            return cache
        groups = _groups(cache, self.backbone.num_layers, []) if grows(cache.layers[0], cache) else None
        return cache if groups is None else StackedCache(groups)

    def _joins(self, name: str) -> bool:
        guide = self.guide(name)
        return guide.changes is not None and not guide.training and self.transfer(name) is None

    def _joint_decoder(self, guides: Sequence[Guide]) -> JointDecoder:
        """Make the decoder of the backbone and these guides, once for as long as they act."""
        whom = (self.backbone, *guides)
        if self._joint is None or len(self._joint[0]) != len(whom) or any(map(operator.is_not, self._joint[0], whom)):
            self._joint = (whom, JointDecoder(self.backbone, [{}, *(guide.changes or {} for guide in guides)]))
        return self._joint[1]


def _is_step(input_ids: Tensor, mask: Any, position_ids: Tensor | None) -> bool:
    """Whether this is one new token a row, with nothing but padding masked."""
    return input_ids.shape[1] == 1 and all(
        x is None or (isinstance(x, Tensor) and x.dim() == 2) for x in (mask, position_ids)
    )


def _groups(cache: Cache, count: int, slots: Sequence[CacheSlot]) -> list[list[DynamicLayer]] | None:
    """For each of the backbone's layers, it and that of every guide; None unless all are plain and hold the same."""
    firsts = (0, *(slot.first_layer for slot in slots))
    if len(cache.layers) < firsts[-1] + count:
        return None
    groups: list[list[Any]] = [[cache.layers[first + i] for first in firsts] for i in range(count)]
    seen = cache.get_seq_length()
    plain = all(type(x) is DynamicLayer and x.get_seq_length() == seen > 0 for group in groups for x in group)
    return groups if plain and not offloaded(cache) else None
