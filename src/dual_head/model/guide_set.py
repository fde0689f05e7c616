"""The generation cache and the masks of a model with guides: who fills which layers, who may look where.

The guides' layers come after the backbone's in the same cache, in the order of the config. It knows how many
layers each guide needs, and nothing of what guides say.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate

from dual_head.backbone import Backbone
from dual_head.cache import CacheSlot
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.guides import Guide
from dual_head.ops.masks import additive, branch_mask, causal_mask

# Keys beside the backbone's own masks, when masks are made ahead: the guides' mask, and the padding it came from.
GUIDES_MASK, PADDING = "guides", "padding"
BACKBONE_MASK = "backbone"


class GuideCaching:
    """The part of `AlignedModel` that shares one cache among backbone and guides."""

    config: AlignedConfig
    backbone: Backbone
    guide: Callable[[str], Guide]

    def _cache_slots(self, cache: Cache | None, acting: Mapping[str, Guide]) -> dict[str, CacheSlot]:
        """Give each guide its layers of the cache: after the backbone's, in the order of the config."""
        if cache is None or not acting:
            return {}
        slots, layer, seen = {}, self.backbone.num_layers, cache.get_seq_length()
        for name, entry in (self.config.guides or {}).items():
            if name in acting and entry["cache_layers"]:
                length = cache.get_seq_length(layer)
                if isinstance(seen, int) and isinstance(length, int) and length != seen:
                    raise DualHeadError(
                        f"This cache holds {seen} tokens of the backbone and {length} of the guide '{name}': it was "
                        "filled while the guide was off. Start from an empty cache to turn a guide on."
                    )
                slots[name] = CacheSlot(cache, layer)
            layer += entry["cache_layers"]
        return slots

    def _masks(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | dict[str, Any] | None,
        cache: Cache | None,
        acting: Mapping[str, Guide],
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """Split ready-made masks, or build the guides' from the padding mask [B, past + T], which comes last."""
        if isinstance(attention_mask, dict) and GUIDES_MASK in attention_mask:
            backbone_mask = {key: mask for key, mask in attention_mask.items() if key not in (GUIDES_MASK, PADDING)}
            return (
                backbone_mask.get(BACKBONE_MASK, backbone_mask),
                attention_mask[GUIDES_MASK],
                attention_mask[PADDING],
            )
        if not acting:
            return attention_mask, None, None
        if attention_mask is not None and (isinstance(attention_mask, dict) or attention_mask.dim() != 2):
            raise DualHeadError("attention_mask must be a padding mask [B, past + T] of ones and zeros.")
        tokens = input_ids if input_ids is not None else inputs_embeds
        assert tokens is not None
        entries = self.config.guides or {}
        # Only a guide that looks back reads a mask, and such a guide has keys of its own.
        looks_back = any(entries[name]["cache_layers"] for name in acting)
        mask = self._guides_mask(attention_mask, tokens.shape[1], cache, tokens.device) if looks_back else None
        return attention_mask, mask, attention_mask

    def _guides_mask(self, padding: Tensor | None, length: int, cache: Cache | None, device: torch.device):
        if padding is None and not self.config.cache_layers:
            return None
        return causal_mask(padding, length, cache, guide_layer=self.backbone.num_layers, device=device)

    def why_no_shared_prompts(self, names: Iterable[str], longest: int) -> str | None:
        """Say why pairs cannot share the run of their prompt, given the guides that act; None where they can."""
        for name in names:
            if not self.guide(name).shares_prompts:
                return f"the guide '{name}' runs a model of its own"
        why = self.backbone.why_no_shared_prompts(longest)
        return why and f"the backbone cannot, {why}"

    def branch_masks(self, parts: Tensor) -> dict[str, Any]:
        """Ready-made masks for rows of [prompt | chosen | rejected], see `masks.branch_mask`; parts [R, T]."""
        mask = branch_mask(parts)
        added = additive(mask, self.backbone.lm.dtype)
        return {BACKBONE_MASK: added, GUIDES_MASK: mask, PADDING: added}

    def create_masks_for_generate(self, config: Any, **inputs: Any) -> dict[str, Any]:
        """Make all masks ahead of a compiled step: the backbone's as it wants them, and the guides' own."""
        del config
        make = getattr(self.backbone.lm, "create_masks_for_generate", create_masks_for_generate)
        masks = make(config=self.backbone.config, **inputs)
        masks = dict(masks) if isinstance(masks, dict) else {BACKBONE_MASK: masks}
        embeds = inputs["inputs_embeds"]
        padding = inputs["attention_mask"]
        mask = self._guides_mask(padding, embeds.shape[1], inputs["past_key_values"], embeds.device)
        if padding is not None and mask is not None:
            # As wide at every step, or a compiled step would be compiled anew for every token.
            padding = F.pad(padding, (0, mask.shape[-1] - padding.shape[1]))
        return masks | {GUIDES_MASK: mask, PADDING: padding}

    def _get_static_cache_init_shape(self):
        """Let a static cache take its sizes from the first keys: a gate's heads are not the backbone's."""
        return None if self.config.cache_layers else super()._get_static_cache_init_shape()  # pyright: ignore[reportAttributeAccessIssue]
