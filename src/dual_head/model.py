"""The aligned model: a frozen backbone, named guides, and a strength for each.

    z = z_base + sum_k alpha_k g_k direction_k          alpha = 0 gives the backbone's own bits

A `PreTrainedModel` that generates with transformers' own `generate`: the guides' keys and values are more
layers of the same cache, so beams, cropping, static caches, batching, streaming and assisted decoding need
nothing from us. It knows guides only through `Guide`, and nothing of training.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import TransformersKwargs

from dual_head.backbone import Backbone, Features, load_backbone, tokenizer_fingerprint
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.fusion import fuse, require_fusion
from dual_head.guides import CacheSlot, Guide, GuideConfig, States, build_guide, kind_of
from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.loading import GuideLoading
from dual_head.masks import causal_mask
from dual_head.strength import Alpha, resolve_alpha
from dual_head.text import TextGeneration

GUIDES_MASK = "guides"  # key of the guides' own mask, beside the backbone's, when masks are made ahead
BACKBONE_MASK = "backbone"


@dataclass(frozen=True)
class Encoded:
    """One pass over tokens: hidden [B, T, d], and the states of every guide that acts, each [B, T, *]."""

    hidden: Tensor
    states: dict[str, States]
    backbone: BaseModelOutputWithPast | None = None  # what the decoder returned, for whoever asked for more


class AlignedModel(TextGeneration, GuideLoading, GenerationMixin):
    """A frozen decoder steered by guides; build it with `from_backbone` or `from_pretrained`."""

    config_class = AlignedConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: AlignedConfig, lm: PreTrainedModel):
        config._attn_implementation = lm.config._attn_implementation
        super().__init__(config)
        self.backbone = Backbone(lm)
        self.guides = nn.ModuleDict(
            {name: build_guide(entry, self.backbone.shape) for name, entry in (config.guides or {}).items()}
        )
        self.generation_config = copy.deepcopy(lm.generation_config)
        if device_map := getattr(lm, "hf_device_map", None):
            self.hf_device_map = device_map  # transformers reads it to decide about compiling
        self.eval()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        guides: Mapping[str, GuideConfig],
        *,
        alpha: Mapping[str, float] | None = None,
        fusion: str = "logits",
        tokenizer: PreTrainedTokenizerBase | None = None,
        **load: Any,
    ) -> "AlignedModel":
        """Attach fresh guides to a backbone, given by name, folder or as a loaded model (frozen in place).

        guides: {name: config}; alpha: default strengths, 1 where not said; fusion: "logits" or
        "probabilities"; tokenizer: recorded, so that a wrong one is refused later; load: options of
        `load_backbone` (dtype, device_map, attn_implementation, quantization_config, trust_remote_code,
        revision). Errors: unknown fusion or options.
        """
        require_fusion(fusion)
        for name in guides:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise DualHeadError(f"'{name}' cannot name a guide. Use letters, digits and underscores.")
        strengths = {**dict.fromkeys(guides, 1.0), **(alpha or {})}
        resolve_alpha(strengths, defaults=dict.fromkeys(guides, 1.0), rows=1)
        loaded = isinstance(backbone, nn.Module)
        if load and loaded:
            raise DualHeadError(f"The backbone is already loaded, so {', '.join(load)} would do nothing. Leave it out.")
        lm = backbone if isinstance(backbone, nn.Module) else load_backbone(str(backbone), **load)
        frozen = Backbone(lm)
        config = AlignedConfig(
            backbone_config=copy.deepcopy(frozen.config),
            backbone_name_or_path=_absolute(frozen.config._name_or_path),
            backbone_fingerprint=frozen.fingerprint().as_dict(),
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer) if tokenizer else None,
            guides={name: _entry(guide, frozen) for name, guide in guides.items()},
            alpha={name: float(value) for name, value in strengths.items()},
            fusion=fusion,
        )
        model = cls(config, frozen.lm)
        if tokenizer is not None:
            model.require_same_tokenizer(tokenizer)
        model.guides.to(model.backbone.output_device)
        return model

    # ---- one pass --------------------------------------------------------------------------------------

    def encode(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        guides: Sequence[str] = (),
        options: dict[str, Any] | None = None,
    ) -> Encoded:
        """Run the backbone and the sequence part of the named guides: no logits, nothing as wide as V."""
        acting = {name: self.guide(name) for name in guides}
        slots = self._cache_slots(past_key_values, acting)
        backbone_mask, guides_mask = self._masks(input_ids, inputs_embeds, attention_mask, past_key_values, acting)
        output, layers = self.backbone(
            input_ids,
            attention_mask=backbone_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            layers=tuple(sorted({i for guide in acting.values() for i in guide.hidden_layers})),
            options=options,
        )
        features = Features(output.last_hidden_state, layers, guides_mask, position_ids)
        states = {name: guide.encode(features, slots.get(name)) for name, guide in acting.items()}
        return Encoded(features.hidden, states, output)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        alpha: Alpha = None,
        guides: tuple[str, ...] | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the aligned policy, [B, T, V] or the last `logits_to_keep` positions of them.

        alpha: as `resolve_alpha` takes it; or, with `guides` naming who acts, a tensor [B, guides] (that is
        how `generate` passes it, so that beams and returned sequences expand it like any input).
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            raise DualHeadError("The model needs input_ids or inputs_embeds.")
        if guides is None:
            guides, alpha = self.resolve_alpha(alpha, tokens.shape[0])
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.get_text_config(decoder=True))
        for handed_on in ("return_dict", "tokenizer"):  # by transformers' generate, to every model
            options.pop(handed_on, None)
        for name in options.keys() - TransformersKwargs.__optional_keys__:
            raise TypeError(f"forward got an unexpected argument '{name}'")
        encoded = self.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            guides=guides,
            options=options,
        )
        keep = (
            slice(-logits_to_keep if logits_to_keep else None, None)
            if isinstance(logits_to_keep, int)
            else logits_to_keep
        )
        strengths = torch.as_tensor(alpha).to(encoded.hidden.device)  # [B, guides]
        base = self.backbone.logits(encoded.hidden[:, keep])
        terms = (
            self.guide(name).term({key: x[:, keep] for key, x in states.items()}, base, strengths[:, i, None, None])
            for i, (name, states) in enumerate(encoded.states.items())
        )
        return CausalLMOutputWithPast(
            logits=fuse(base, terms, self.config.fusion),
            past_key_values=past_key_values,
            hidden_states=getattr(encoded.backbone, "hidden_states", None)
            if options.get("output_hidden_states")
            else None,
            attentions=getattr(encoded.backbone, "attentions", None),
        )

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's embeddings."""
        return self.backbone.lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The backbone's lm_head."""
        return self.backbone.lm.get_output_embeddings()

    def resolve_alpha(self, alpha: Alpha, rows: int) -> tuple[tuple[str, ...], Tensor]:
        """Who acts, and how strongly: `strength.resolve_alpha` with this model's defaults."""
        return resolve_alpha(alpha, defaults=self.config.alpha or {}, rows=rows, fusion=self.config.fusion)

    def guide(self, name: str) -> Guide:
        """Return the guide of that name."""
        guide = self.guides[name]
        assert isinstance(guide, Guide)
        return guide

    # ---- cache and masks -------------------------------------------------------------------------------

    def _cache_slots(self, cache: Cache | None, acting: Mapping[str, Guide]) -> dict[str, CacheSlot]:
        """Give each guide its layers of the cache: after the backbone's, in the order of the config."""
        if cache is None:
            return {}
        slots, layer, seen = {}, self.backbone.shape.num_layers, cache.get_seq_length()
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
    ) -> tuple[Any, Tensor | None]:
        """Split ready-made masks, or build the guides' from the padding mask [B, past + T]."""
        if isinstance(attention_mask, dict) and GUIDES_MASK in attention_mask:
            backbone_mask = {key: mask for key, mask in attention_mask.items() if key != GUIDES_MASK}
            return backbone_mask.get(BACKBONE_MASK, backbone_mask), attention_mask[GUIDES_MASK]
        if not acting:
            return attention_mask, None
        if attention_mask is not None and (isinstance(attention_mask, dict) or attention_mask.dim() != 2):
            raise DualHeadError("attention_mask must be a padding mask [B, past + T] of ones and zeros.")
        tokens = input_ids if input_ids is not None else inputs_embeds
        assert tokens is not None
        return attention_mask, self._guides_mask(attention_mask, tokens.shape[1], cache, tokens.device)

    def _guides_mask(self, padding: Tensor | None, length: int, cache: Cache | None, device: torch.device):
        if padding is None and not self.config.cache_layers:
            return None
        return causal_mask(padding, length, cache, guide_layer=self.backbone.shape.num_layers, device=device)

    def create_masks_for_generate(self, config: Any, **inputs: Any) -> dict[str, Any]:
        """Make all masks ahead of a compiled step: the backbone's as it wants them, and the guides' own."""
        del config
        make = getattr(self.backbone.lm, "create_masks_for_generate", create_masks_for_generate)
        masks = make(config=self.backbone.config, **inputs)
        masks = dict(masks) if isinstance(masks, dict) else {BACKBONE_MASK: masks}
        embeds = inputs["inputs_embeds"]
        return masks | {
            GUIDES_MASK: self._guides_mask(
                inputs["attention_mask"], embeds.shape[1], inputs["past_key_values"], embeds.device
            )
        }

    def _get_static_cache_init_shape(self):
        """Let a static cache take its sizes from the first keys: a gate's heads are not the backbone's."""
        return None if self.config.cache_layers else super()._get_static_cache_init_shape()  # pyright: ignore[reportAttributeAccessIssue]

    def _get_candidate_generator(self, *, model_kwargs: dict[str, Any], **inputs: Any):
        """Keep our own inputs from an assistant model, which would not know them."""
        theirs = {key: value for key, value in model_kwargs.items() if key not in ("alpha", "guides")}
        return super()._get_candidate_generator(model_kwargs=theirs, **inputs)  # pyright: ignore[reportAttributeAccessIssue]


class DualHeadModel(AlignedModel):
    """An aligned model with one Dual-Head guide: a reward head and its attention gate."""

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        guides: Mapping[str, GuideConfig] | None = None,
        *,
        alpha: Mapping[str, float] | None = None,
        fusion: str = "logits",
        tokenizer: PreTrainedTokenizerBase | None = None,
        guide: RewardHeadConfig | None = None,
        **load: Any,
    ) -> "AlignedModel":
        """Attach one fresh Dual-Head guide, named "dual_head"; see `RewardHeadConfig` for its options."""
        if guides and guide:
            raise DualHeadError("Give guides={name: config, ...}, or guide=config for a single one; not both.")
        guides = guides or {"dual_head": guide or RewardHeadConfig()}
        return super().from_backbone(backbone, guides, alpha=alpha, fusion=fusion, tokenizer=tokenizer, **load)


def _entry(config: GuideConfig, backbone: Backbone) -> dict[str, Any]:
    entry = {"kind": kind_of(config), "config": config.as_dict()}
    with torch.device("meta"):  # only to ask how many cache layers it needs
        return entry | {"cache_layers": build_guide(entry, backbone.shape).cache_layers}


def _absolute(name_or_path: str | None) -> str | None:
    return str(Path(name_or_path).resolve()) if name_or_path and Path(name_or_path).is_dir() else name_or_path


AutoConfig.register(AlignedConfig.model_type, AlignedConfig)
AutoModelForCausalLM.register(AlignedConfig, AlignedModel)
