"""The aligned model: a frozen backbone, named guides, and a strength for each.

    z = lm_head(h + sum_k alpha_k g_k hidden_delta_k) + sum_k alpha_k g_k logit_delta_k

alpha = 0 gives the backbone's own bits.

A `PreTrainedModel` that generates with transformers' own `generate`: the guides' keys and values are more
layers of the same cache, so beams, cropping, static caches, batching, streaming and assisted decoding need
nothing from us. It knows guides only through `Guide`, and nothing of training.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
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
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import TransformersKwargs

from dual_head.backbone import Backbone, BackboneShape, load_backbone
from dual_head.cache import CacheSlot
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.fingerprint import tokenizer_fingerprint
from dual_head.fusion import require_fusion
from dual_head.guides import Guide, GuideConfig, States, build_guide
from dual_head.hidden_states import Features, Rows
from dual_head.model.alpha import Alpha, Strengths, requested, resolve_alpha, strengths_of
from dual_head.model.decode_step import JointSteps, StepOutput
from dual_head.model.generate import TextGeneration
from dual_head.model.guide_set import GuideCaching
from dual_head.model.inner_calls import InnerCalls
from dual_head.model.pretrained import GuideLoading
from dual_head.model.switch import GuideComposition, absolute, entry_of, require_guide_name
from dual_head.policy import ActiveGuide, distributions
from dual_head.transfer import UNMAPPED, Transfer


@dataclass(frozen=True)
class Encoded:
    """One pass over tokens: hidden [B, T, d], and the states of every guide that acts, each [B, T, *]."""

    hidden: Tensor
    states: dict[str, States]
    backbone: BaseModelOutputWithPast | None = None  # what the decoder returned, for whoever asked for more


class AlignedModel(
    TextGeneration, GuideComposition, GuideCaching, JointSteps, InnerCalls, GuideLoading, GenerationMixin
):
    """A frozen decoder steered by guides; build it with `from_backbone` or `from_pretrained`."""

    config_class = AlignedConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: AlignedConfig, lm: PreTrainedModel):
        config = copy.deepcopy(config)  # the caller's own: attach and switch_backbone change this one
        config._attn_implementation = lm.config._attn_implementation
        super().__init__(config)
        self.backbone = Backbone(lm)
        self.guides, self.transfers = nn.ModuleDict(), nn.ModuleDict()
        for name, entry in (config.guides or {}).items():
            self._add_guide(name, entry)
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
            require_guide_name(name)
        strengths = {**dict.fromkeys(guides, 1.0), **(alpha or {})}
        if not all(isinstance(value, (int, float)) for value in strengths.values()):
            raise DualHeadError(f"Default alphas are numbers, not {strengths}. Give schedules and rows to generate.")
        resolve_alpha(strengths, defaults=dict.fromkeys(guides, 1.0), rows=1)
        loaded = isinstance(backbone, nn.Module)
        if load and loaded:
            raise DualHeadError(f"The backbone is already loaded, so {', '.join(load)} would do nothing. Leave it out.")
        lm = backbone if isinstance(backbone, nn.Module) else load_backbone(str(backbone), **load)
        frozen = Backbone(lm)
        config = AlignedConfig(
            backbone_config=copy.deepcopy(frozen.config),
            backbone_name_or_path=absolute(frozen.config._name_or_path),
            backbone_fingerprint=frozen.fingerprint().as_dict(),
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer) if tokenizer else None,
            guides={name: entry_of(guide, frozen.shape) for name, guide in guides.items()},
            alpha={name: float(value) for name, value in strengths.items()},
            fusion=fusion,
        )
        model = cls(config, frozen.lm)
        if tokenizer is not None:
            model.require_same_tokenizer(tokenizer)
            model._tokenizer = tokenizer
        return model

    def _add_guide(self, name: str, entry: dict[str, Any]) -> None:
        """Build a guide from its entry, and what it needs to fit this backbone."""
        shape = BackboneShape.from_dict(entry["shape"])
        guide = build_guide(entry, shape)
        guide.attach(self.backbone)
        device = self.backbone.output_device
        self.guides[name] = guide.to(device).eval()
        if shape != self.backbone.shape or entry.get("adapter") or entry.get("vocab_map"):
            # Filled from the checkpoint, or by switch_backbone.
            ids = torch.full((self.backbone.shape.vocab_size,), UNMAPPED) if entry.get("vocab_map") else None
            transfer = Transfer(shape, self.backbone.shape, adapter=bool(entry.get("adapter")), vocab_map=ids)
            self.transfers[name] = transfer.to(device)

    # ---- one pass --------------------------------------------------------------------------------------

    def encode(
        self,
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
        """Run the backbone and the sequence part of the named guides: no logits, nothing as wide as V.

        keep: the positions whose logits will be asked for; others need no work of a guide that looks at logits;
        select: give the guides these rows of the same tokens, and return those.
        """
        acting = {name: self.guide(name) for name in guides}
        slots = self._cache_slots(past_key_values, acting)
        masks = self._masks(input_ids, inputs_embeds, attention_mask, past_key_values, acting)
        backbone_mask, guides_mask, padding = masks
        wanted = tuple(sorted({i for name, guide in acting.items() for i in self._layers_read(name, guide)}))
        said = None
        if select is None and not options:
            said = self._joint_step(input_ids, backbone_mask, position_ids, past_key_values, slots, wanted)
        if said is None:
            output, layers = self.backbone(
                input_ids,
                attention_mask=backbone_mask,
                position_ids=position_ids,
                past_key_values=self._step_cache(input_ids, past_key_values) if acting else past_key_values,
                inputs_embeds=inputs_embeds,
                layers=wanted,
                options=options,
            )
            said = StepOutput(output.last_hidden_state, layers, output=output)
        features = Features(
            said.hidden, said.layers, guides_mask, position_ids, input_ids, padding, keep, logits=self.backbone.logits
        )
        if select is not None:
            features = features.select(select)
        states = said.states | self.encode_features(features, [n for n in guides if n not in said.states], slots)
        return Encoded(features.hidden, {name: states[name] for name in guides}, said.output)

    def encode_features(
        self, features: Features, guides: Collection[str], slots: Mapping[str, CacheSlot] | None = None
    ) -> dict[str, States]:
        """Run the sequence part of the named guides on what a backbone said, now or when it was kept."""
        slots = slots or {}
        return {name: self.guide(name).encode(self._seen_by(name, features), slots.get(name)) for name in guides}

    def _layers_read(self, name: str, guide: Guide) -> Iterable[int]:
        """Which of the backbone's layers a guide reads, besides the last."""
        own = guide.hidden_layers
        transfer = self.transfer(name) if own else None
        return own if transfer is None else map(transfer.layer, own)

    def _seen_by(self, name: str, features: Features) -> Features:
        transfer, guide = self.transfer(name), self.guide(name)
        if transfer is None or guide.reads_tokens:
            return features
        return transfer.features(features, guide.hidden_layers)

    def distributions(
        self,
        hidden: Tensor,
        states: Mapping[str, States],
        strengths: Tensor,
        wanted: Collection[str] = ("policy",),
        *,
        upcast: bool = False,
    ) -> dict[str, Tensor]:
        """Logits [n, V] of the wanted distributions, see `policy.distributions`.

        hidden [n, d] (or [B, T, d]) and the states of the acting guides, as `encode` gives them; strengths
        [n or 1, acting guides] in their order.
        """
        active = self.active_guides(states, strengths)
        return distributions(self.backbone, active, hidden, wanted, fusion=self.config.fusion, upcast=upcast)

    def active_guides(self, states: Mapping[str, States], strengths: Tensor) -> list[ActiveGuide]:
        """Every acting guide at n tokens: its states, and its column of strengths [n or 1, acting guides]."""
        alphas = strengths.unsqueeze(-1).unbind(-2)
        return [
            ActiveGuide(self.guide(name), own, alpha, self.transfer(name))
            for (name, own), alpha in zip(states.items(), alphas, strict=True)
        ]

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
        guides: Strengths | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the aligned policy, [B, T, V] or the last `logits_to_keep` positions of them.

        alpha: as `resolve_alpha` takes it, schedules counting from the first token; or, with `guides` saying
        who acts, a tensor [B, guides] (that is how `generate` passes it, so that beams and returned sequences
        expand it like any input).
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None or tokens.dim() != (2 if input_ids is not None else 3):
            shape = "neither" if tokens is None else f"a tensor {tuple(tokens.shape)}"
            raise DualHeadError(f"The model needs input_ids [B, T] or inputs_embeds [B, T, d], not {shape}.")
        if guides is None:
            guides, alpha = self.resolve_alpha(alpha, tokens.shape[0])
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.get_text_config(decoder=True))
        for handed_on in ("return_dict", "tokenizer"):  # by transformers' generate, to every model
            options.pop(handed_on, None)
        for name in options.keys() - TransformersKwargs.__optional_keys__:
            raise TypeError(f"forward got an unexpected argument '{name}'")
        keep = (
            slice(-logits_to_keep if logits_to_keep else None, None)
            if isinstance(logits_to_keep, int)
            else logits_to_keep
        )
        # Before the cache grows: a schedule counts from what it holds now.
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        values = strengths_of(torch.as_tensor(alpha, device=tokens.device), tokens.shape[0])
        strengths = guides.over(values, seen, tokens.shape[1], keep)
        encoded = self.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            guides=guides.names,
            keep=keep,
            options=options,
        )
        hidden, states = encoded.hidden, encoded.states
        if tokens.shape[1] > 1:  # of a single token all is kept
            hidden = hidden[:, keep]
            kept = lambda x: hidden if x is encoded.hidden else x[:, keep]  # noqa: E731 - one tensor stays one
            states = {name: {key: kept(x) for key, x in own.items()} for name, own in states.items()}
        return CausalLMOutputWithPast(
            logits=self.distributions(hidden, states, strengths.to(hidden.device))["policy"],
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

    def resolve_alpha(self, alpha: Alpha, rows: int, origin: int = 0) -> tuple[Strengths, Tensor]:
        """Who acts, and how strongly: `strength.resolve_alpha` with this model's defaults, or those of `generate`.

        A call inside `generate` that says no alpha, as a `custom_generate` may make it, gets the request's.
        """
        if alpha is None and (request := requested(self, rows)):
            return request
        return resolve_alpha(
            alpha, defaults=self.config.alpha or {}, rows=rows, fusion=self.config.fusion, origin=origin
        )

    def guide(self, name: str) -> Guide:
        """Return the guide of that name."""
        guide = self.guides[name]
        assert isinstance(guide, Guide)
        return guide

    def transfer(self, name: str) -> Transfer | None:
        """Return what stands between the guide of that name and the backbone; None where it fits as it is."""
        transfer = self.transfers[name] if name in self.transfers else None  # noqa: SIM401 - ModuleDict has no get
        assert transfer is None or isinstance(transfer, Transfer)
        return transfer


AutoConfig.register(AlignedConfig.model_type, AlignedConfig)
AutoModelForCausalLM.register(AlignedConfig, AlignedModel)
