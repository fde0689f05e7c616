"""A second language model as a guide: its logits, or their difference from another's.

    against                 delta                                   method
    nothing                 log pi_r(. | x, y_<t)                   GenARM: an autoregressive reward model
    "backbone"              z_r - z_base                            a tuned model (DPO, SimPO); alpha < 1 realigns
    "unguided"              z_r - z_r unguided                      a weak guided model steers a strong backbone
    another model           z_expert - z_antiexpert                 proxy tuning, DExperts, contrastive decoding

log pi_r and z_r differ by a constant per position, which no distribution notices, so that z_r is what is
added. The model keeps its own keys and values in the same generation cache; when it is the backbone with a
LoRA, every weight is shared in memory. This file knows nothing of losses or of other guides.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.decoder import Backbone, BackboneShape, Decoder, layer_types
from dual_head.backbone.features import Features
from dual_head.backbone.joint import Changes, JointDecoder, JointPart
from dual_head.backbone.views import shared_view
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError, require
from dual_head.guides.base import Parameters, States
from dual_head.guides.second_model import (
    SecondModel,
    SecondModelConfig,
    causal_lm,
    count_forwards,
    count_layers,
    count_parameters,
    fit_vocabulary,
    injecting,
    lora_config,
    low_rank_changes,
    shares_weights,
)

BACKBONE, UNGUIDED = "backbone", "unguided"
REFERENCE = "against/"  # prefix of the other model's states


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(SecondModelConfig):
    """Options of the language-model guide, besides those of `SecondModelConfig`.

    model: a causal LM, a PEFT adapter or a checkpoint of guides; None for the backbone itself; against: what
    its logits are measured against, see the table above.
    """

    against: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.tune == "none" and self.model is None:
            raise DualHeadError("An untrained copy of the backbone steers nothing: name another model, or tune it.")

    def moved_from(self, backbone: str | None) -> "LanguageModelConfig":
        """Stay on the models it was made of: a tuned model goes on being measured against what it was tuned from."""
        config = super().moved_from(backbone)
        return replace(config, against=config.model) if self.model is None and self.against == BACKBONE else config


class LanguageModel(SecondModel):
    """delta_t = z_r,t, or z_r,t less the logits it is measured against.

    Sources: GenARM (Xu et al. 2024), proxy tuning (Liu et al. 2024), DExperts (Liu et al. 2021),
    contrastive decoding (Li et al. 2022), decoding-time realignment (Liu et al. 2024).
    """

    Config = LanguageModelConfig
    config: LanguageModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: LanguageModelConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.trainable = config.tune != "none"
        self._lms: tuple[_PlainLM, ...] = ()
        self._changes: Changes | None = None

    def attach(self, backbone: Backbone) -> None:
        """Load the model, or take a view of the backbone; put a LoRA into it."""
        is_shared = shares_weights(self.config.model, backbone)
        lm: Any = causal_lm(self.config.model, backbone)
        # Taken before an adapter goes in: a model measured against what it was tuned from is held once.
        tuned_from_other = self._other is not None and self._other == self.config.model and self.config.tune != "none"
        reference = shared_view(lm) if tuned_from_other else None
        wrapper = lm
        if self.config.tune == "lora":
            adapter = lora_config(self.config, lm, "CAUSAL_LM")
            with injecting(lm):
                wrapper = require("peft", "peft").get_peft_model(lm, adapter)
        elif self.config.tune == "full":
            # A copy trained in fp32: the optimizer's steps are smaller than bf16 can hold.
            wrapper = lm = copy.deepcopy(backbone.lm if is_shared else lm).float().requires_grad_(True)
        self._tuned = (wrapper,)  # not a submodule: it is borrowed
        self._hold(lm, moves=not is_shared or self.config.tune == "full")
        if is_shared and self.config.tune != "full":
            self._changes = low_rank_changes(lm, backbone)
        decoder = JointDecoder(backbone, [self._changes]) if self._changes else None
        lms = [_reader(lm, decoder, unguided=self.config.against == UNGUIDED)]
        if self._other:
            reference = reference or causal_lm(self._other, backbone)
            self._hold(reference, moves=not shares_weights(self._other, backbone))
            lms.append(_reader(reference, None, unguided=False))
        self._lms = tuple(lms)

    @property
    def tuned(self) -> Any:
        """The model as a trainer takes it, PEFT's wrapper where there is a LoRA; it shares every tensor with this."""
        return self._tuned[0]

    @property
    def _other(self) -> str | None:
        return None if self.config.against in (None, BACKBONE, UNGUIDED) else self.config.against

    @property
    def cache_layers(self) -> int:
        layers = self.shape.num_layers if self.config.model is None else count_layers(self.config.model)
        return layers + (count_layers(self._other) if self._other else 0)

    @property
    def reads_base(self) -> bool:
        """Whether it is measured against the backbone."""
        return self.config.against == BACKBONE

    def executed(self, stored: int, backbone: Parameters) -> int:
        """What is trained, the model it is trained on, and the one it is measured against."""
        other = count_parameters(self._other, backbone).whole if self._other else 0
        model = 0 if self.config.tune == "full" else count_parameters(self.config.model, backbone).whole
        return stored + model + other

    @property
    def joint_parts(self) -> tuple[JointPart, ...]:
        """Its LoRA, where it is the backbone with one and measured against no other model."""
        return () if self._other or self._changes is None else (JointPart(self._changes),)

    @property
    def why_not_paged(self) -> str | None:
        """What is read through the step's own mask can be; a model with guides or windows makes masks of its own."""
        for reader in self._lms:
            if isinstance(reader, _GuidedLM):
                return "its model has guides of its own"
            if {*layer_types(reader.lm.config)} != {"full_attention"}:
                return "its model looks back through a window"
        return None

    @property
    def extra_forwards(self) -> float:
        return sum(1 if name is None else count_forwards(name) for name in (self.config.model, self._other or ""))

    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Run the model over the same tokens, with its own layers of the cache: its states, each [B, T, *]."""
        if features.input_ids is None:
            raise DualHeadError("A language-model guide reads token ids, so inputs_embeds are not enough for it.")
        states: States = {}
        offset = 0
        for prefix, reader in zip(("", REFERENCE), self._lms, strict=False):
            view = None if cache is None else cache.view(reader.layers, offset, reader.special_layers)
            states |= {f"{prefix}{key}": x for key, x in reader.encode(features, view, self.training).items()}
            offset += reader.layers
        return states

    def from_joint_step(self, hidden: Tensor, logits: Tensor, base_logits: Tensor) -> States:
        """Keep the logits, which came out of one product with the backbone's."""
        return {"hidden": hidden, "logits": logits, "base_logits": base_logits}

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """z_r, or its difference: [n, V]."""
        size = self.shape.vocab_size
        logits = self._lms[0].logits({key: x for key, x in states.items() if not key.startswith(REFERENCE)})
        if self._other:
            other = {key.removeprefix(REFERENCE): x for key, x in states.items() if key.startswith(REFERENCE)}
            reference = self._lms[1].logits(other)
            common = min(logits.shape[-1], reference.shape[-1])  # tokens of only one of them have no difference
            logits = logits[..., :common] - reference[..., :common]
        logits = fit_vocabulary(logits, size)
        return logits - base if self.config.against == BACKBONE and base is not None else logits

    def reward(self, logit_delta: Tensor, base: Tensor) -> Tensor:
        """The model's own distribution, where it is measured against nothing or against the backbone."""
        return logit_delta if self.config.against is None else base + logit_delta


class _PlainLM:
    """A causal LM as this guide uses it: states first, logits on demand.

    joint: the same model where it is the backbone with a LoRA, for passes without a gradient.
    """

    def __init__(self, lm: PreTrainedModel, joint: JointDecoder | None):
        self.lm = lm
        self.layers: int = lm.config.get_text_config(decoder=True).num_hidden_layers
        self._decoder, self._joint = Decoder(lm), joint
        self.special_layers = self._decoder.special_layers

    def encode(self, features: Features, cache: Any, training: bool) -> States:
        inputs: dict[str, Any] = {
            "attention_mask": features.padding,
            "position_ids": features.positions,
            "past_key_values": cache,
        }
        # PEFT's layers keep what a backward pass needs: three tensors as large as the output, for every one of them.
        if self._joint is not None and not training and self._joint.usable():
            assert features.input_ids is not None
            return {"hidden": self._joint.forward(features.input_ids, **inputs)[0]}
        return {"hidden": self._decoder(features.input_ids, **inputs)[0].last_hidden_state}

    def logits(self, states: States) -> Tensor:
        # The last of many positions lie apart, and of such rows the product takes three times as long.
        return states["logits"] if "logits" in states else self._decoder.logits(states["hidden"].contiguous())


class _GuidedLM(_PlainLM):
    """An aligned model at its own default strengths; `unguided`: less itself unguided, so what its guides add."""

    def __init__(self, lm: Any, *, unguided: bool):
        self.lm = lm
        self.layers = lm.config.get_text_config(decoder=True).num_hidden_layers
        self.special_layers = lm.backbone.special_layers
        self._strengths, self._values = lm.resolve_alpha(None, 1)
        self._distributions = ("policy", "base") if unguided else ("policy",)

    def encode(self, features: Features, cache: Any, training: bool) -> States:
        del training
        encoded = self.lm.encode(
            features.input_ids,
            attention_mask=features.padding,
            position_ids=features.positions,
            past_key_values=cache,
            guides=self._strengths.names,
            strengths=(self._strengths, self._values),
            keep=features.keep,
        )
        return {"hidden": encoded.hidden, **_side_by_side(encoded.states)}

    def logits(self, states: States) -> Tensor:
        guides = _by_guide({key: x for key, x in states.items() if key != "hidden"}, self._strengths.names)
        values = self._values.to(states["hidden"].device)
        z = self.lm.distributions(states["hidden"], guides, values, self._distributions)
        return z["policy"] - z["base"] if "base" in z else z["policy"]


def _side_by_side(states: Mapping[str, States]) -> States:
    """The states of the model's guides as this guide's: {"guide/key": tensor}."""
    return {f"{name}/{key}": x for name, guide_states in states.items() for key, x in guide_states.items()}


def _by_guide(states: States, names: Iterable[str]) -> dict[str, States]:
    """The inverse, in the order of `names`."""
    guides: dict[str, States] = {name: {} for name in names}
    for path, x in states.items():
        name, _, key = path.partition("/")
        guides[name][key] = x
    return guides


def _reader(lm: PreTrainedModel, joint: JointDecoder | None, *, unguided: bool) -> _PlainLM:
    if lm.config.model_type == AlignedConfig.model_type:
        return _GuidedLM(lm, unguided=unguided)
    if unguided:
        raise DualHeadError("against='unguided' needs a checkpoint of guides as its model, not a plain one.")
    return _PlainLM(lm, joint)


GUIDE = LanguageModel
