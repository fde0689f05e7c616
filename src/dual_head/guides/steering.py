"""Steering vectors as a guide: the backbone with alpha v added between its layers, in rows of its own.

    h_l <- h_l + alpha v_l      for each named layer l, at every token or at those of the reply
    delta = z(h with it) - z_base

The rows of the backbone itself stay as they are, so what other guides read, the divergence from the backbone and its
own bits are there in the same pass. A row of this guide has keys and values of its own, which are of one alpha. It
knows no training and no other guide.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.decoder import Backbone, BackboneShape, layer_types
from dual_head.backbone.features import Features, TokenStrength
from dual_head.backbone.joint import JointPart, Shifts
from dual_head.errors import DualHeadError
from dual_head.guides.base import Guide, GuideConfig, Parameters, States


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(GuideConfig):
    """Options of steering vectors.

    layers: the hidden states that get one, 1 for what the first decoder layer gives, negative ones counted from the
    last; None for the middle one alone. tokens: "all", or "reply" for what predicts the reply, and not the prompt.
    """

    layers: list[int] | None = None
    tokens: Literal["all", "reply"] = "all"

    def __post_init__(self):
        if self.tokens not in ("all", "reply"):
            raise DualHeadError(f"tokens must be 'all' or 'reply', not '{self.tokens}'.")
        if self.layers is not None and not self.layers:
            raise DualHeadError("layers is an empty list. Name the layers, or leave it out for the middle one.")

    def indices(self, count: int) -> tuple[int, ...]:
        """The layers of a decoder of `count` layers, ascending. Errors: one that it has not, or one twice."""
        named = [max(1, count // 2)] if self.layers is None else self.layers
        layers = sorted(count + 1 + i if i < 0 else i for i in named)
        if layers[0] < 1 or layers[-1] > count or len({*layers}) < len(layers):
            raise DualHeadError(
                f"The decoder has layers 1 to {count}, each of which has one steering vector at most, not {named}."
            )
        return tuple(layers)


class Steering(Guide):
    """delta_t = z_t(h_l + alpha v_l) - z_t, with v_l [d] for each named layer l; at `alpha` itself, not scaled by it.

    Sources: activation addition (Turner et al. 2023), representation engineering (Zou et al. 2023), contrastive
    activation addition (Rimsky et al. 2024).
    """

    Config = SteeringConfig
    config: SteeringConfig
    reads_tokens = True
    trainable = False
    steers_layers = True

    def __init__(self, config: SteeringConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.layers = config.indices(shape.num_layers)
        self.vectors = nn.Parameter(torch.zeros(len(self.layers), shape.hidden_size), requires_grad=False)
        self._backbone: tuple[Backbone, ...] = ()  # borrowed, so no submodule

    def attach(self, backbone: Backbone) -> None:
        """Take the backbone, which it runs. Errors: layers whose width is not that of the lm_head's input."""
        width = backbone.config.get_text_config(decoder=True).hidden_size
        if width != self.shape.hidden_size:
            raise DualHeadError(
                f"The layers of {type(backbone.lm).__name__} are {width} wide and its lm_head reads "
                f"{self.shape.hidden_size}, so steering vectors have no place there."
            )
        self._backbone = (backbone,)

    # ---- what it needs ---------------------------------------------------------------------------------

    @property
    def cache_layers(self) -> int:
        """Those of the backbone."""
        return self.shape.num_layers

    @property
    def reads_base(self) -> bool:
        """Yes: its logits are less those."""
        return True

    @property
    def shares_prompts(self) -> bool:
        """Not tried."""
        return False

    @property
    def spares_prompts(self) -> bool:
        """As its options say."""
        return self.config.tokens == "reply"

    @property
    def why_not_paged(self) -> str | None:
        """A step of pages has one mask, and windows have their own."""
        types = {*layer_types(self._backbone[0].config)}
        return None if types == {"full_attention"} else "its rows of the backbone look back through a window"

    @property
    def extra_forwards(self) -> float:
        """One, whose weights are read with the backbone's own in a step."""
        return 1

    def executed(self, stored: int, backbone: Parameters) -> int:
        """The backbone once more, and the vectors."""
        return stored + backbone.whole

    @property
    def joint_parts(self) -> tuple[JointPart, ...]:
        """The backbone, with shifts alone."""
        return (JointPart({}),)

    # ---- sequence part ---------------------------------------------------------------------------------

    def shifts(self, strength: TokenStrength) -> Shifts:
        """alpha v_l for each layer l, [B or 1, T or 1, d]; 0 at a prompt's tokens where those are left out."""
        alpha = strength.alpha
        if self.spares_prompts:
            alpha = alpha * strength.new
        return {layer: alpha[..., None] * v.float() for layer, v in zip(self.layers, self.vectors, strict=True)}

    @torch.no_grad()
    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Run the backbone with its vectors: the last hidden state [B, T, d]."""
        if features.input_ids is None:
            raise DualHeadError("Steering runs the backbone on token ids, so inputs_embeds are not enough for it.")
        if features.strength is None:
            raise DualHeadError(
                "Steering adds alpha v while the backbone runs, so its alpha is needed there. "
                "Give encode strengths=(strengths, values), as resolve_alpha returns them."
            )
        (backbone,) = self._backbone
        output, _ = backbone(
            features.input_ids,
            attention_mask=features.padding,
            position_ids=features.positions,
            past_key_values=None if cache is None else cache.view(self.cache_layers, special=backbone.special_layers),
            shifts=self.shifts(features.strength),
        )
        return {"hidden": output.last_hidden_state}

    def linear_map(self) -> tuple[Tensor, Tensor | None]:
        """None: it acts between layers."""
        raise DualHeadError("Steering acts between layers. Write it as a control vector (merge --control_vector).")

    def from_joint_step(self, hidden: Tensor, logits: Tensor, base_logits: Tensor) -> States:
        """Keep the logits, which came out of one product with the backbone's."""
        return {"hidden": hidden, "logits": logits, "base_logits": base_logits}

    # ---- vocabulary part -------------------------------------------------------------------------------

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """z(h with alpha v) - z: [n, V]."""
        (backbone,) = self._backbone
        logits = states["logits"] if "logits" in states else backbone.logits(states["hidden"].contiguous())
        assert base is not None
        return logits - base


GUIDE = Steering
