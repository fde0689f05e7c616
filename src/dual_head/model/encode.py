"""One pass over tokens: the backbone, and the sequence part of guides. No logits, nothing as wide as the vocabulary."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from dual_head.backbone.features import Features, Rows
from dual_head.guides import States
from dual_head.model.decode_step import StepOutput, growing_cache
from dual_head.model.guide_set import GuideSet


@dataclass(frozen=True)
class Encoded:
    """One pass over tokens: hidden [B, T, d], and the states of every guide that acts, each [B, T, *]."""

    hidden: Tensor
    states: dict[str, States]
    backbone: BaseModelOutputWithPast | None = None  # what the decoder returned, hidden layers and attentions too


def encode(
    guide_set: GuideSet,
    input_ids: Tensor | None,
    *,
    attention_mask: Tensor | dict[str, Any] | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    guides: Collection[str] = (),
    keep: slice | Tensor = slice(None),
    select: Rows | None = None,
    options: dict[str, Any] | None = None,
) -> Encoded:
    """Run the backbone and the sequence part of the named guides.

    input_ids [B, T], or inputs_embeds [B, T, d]; attention_mask: of padding [B, past + T], or ready-made masks;
    keep: the positions whose logits are scored, others need no work of a guide that looks at logits; select: give the
    guides these rows of the same tokens, and return those; options: of the decoder's forward.
    """
    tokens = input_ids if input_ids is not None else inputs_embeds
    assert tokens is not None
    backbone, cache, layers = guide_set.backbone, past_key_values, guide_set.layers_read(guides)
    slots = guide_set.cache_slots(cache, guides)
    masks = guide_set.masks(tokens, attention_mask, cache, guides)
    step: StepOutput | None = None
    if select is None and not options:
        step = guide_set.step(
            slots, input_ids=input_ids, mask=masks.backbone, position_ids=position_ids, cache=cache, layers=layers
        )
    if step is None:
        output, hidden_layers = backbone(
            input_ids,
            attention_mask=masks.backbone,
            position_ids=position_ids,
            past_key_values=growing_cache(backbone, input_ids, cache) if guides else cache,
            inputs_embeds=inputs_embeds,
            layers=layers,
            options=options,
        )
        step = StepOutput(output.last_hidden_state, hidden_layers, output=output)
    features = Features(
        step.hidden, step.layers, masks.guides, position_ids, input_ids, masks.padding, keep, logits=backbone.logits
    )
    if select is not None:
        features = features.select(select)
    states = step.states | guide_set.encode(features, [name for name in guides if name not in step.states], slots)
    return Encoded(features.hidden, {name: states[name] for name in guides}, step.output)
