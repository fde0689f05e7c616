"""The hidden-space guide: a low-rank change of the hidden state, before the lm_head.

    z_t = lm_head(h_t + alpha g_t U V h_t),      g_t = 1, or the causal attention gate

2 d r parameters, however large the vocabulary. Hidden deltas of several guides add up before one vocabulary product,
so any number of objectives at any strength per row costs one. Tied to the backbone's hidden size: it writes
into the same space it reads. This file knows nothing of losses or of other guides.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dual_head.backbone.decoder import BackboneShape
from dual_head.errors import DualHeadError
from dual_head.guides.base import Guide, GuideConfig, States
from dual_head.guides.layers import CausalGate, LinearMap, require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class HiddenConfig(GuideConfig):
    """Options of the hidden-space guide.

    rank: r of U [d, r] and V [r, d], None for a full d x d matrix; bias: add a constant vector, as steering
    vectors have it; gate: "none", or "attention", a causal gate of num_heads x head_dim; init_std: standard
    deviation of U at the start, 0 gives hidden_delta = 0.
    """

    rank: int | None = 64
    bias: bool = False
    gate: Literal["none", "attention"] = "none"
    num_heads: int = 8
    head_dim: int = 48
    init_std: float = 0.0

    def __post_init__(self):
        if self.gate not in ("none", "attention"):
            raise DualHeadError(f"gate must be 'none' or 'attention', not '{self.gate}'.")
        require_positive(rank=self.rank, num_heads=self.num_heads, head_dim=self.head_dim)
        require_not_negative(init_std=self.init_std)


class Hidden(Guide):
    """delta_t = g_t (U V h_t + b), with U V [d, d] of rank r."""

    Config = HiddenConfig
    config: HiddenConfig
    space = "hidden"

    def __init__(self, config: HiddenConfig, shape: BackboneShape):
        super().__init__(config, shape)
        d = shape.hidden_size
        self.change = LinearMap(d, d, rank=config.rank, bias=config.bias, init_std=config.init_std)
        if config.gate == "attention":
            self.causal_gate = CausalGate(d, config.num_heads, config.head_dim)

    def hidden_delta(self, states: States) -> Tensor:
        """U V h_t + b, [n, d] to [n, d]."""
        return self.change(states["hidden"])

    @property
    def hidden_delta_map(self) -> LinearMap:
        """U V and b."""
        return self.change

    def linear_map(self) -> tuple[Tensor, Tensor | None]:
        """U V and b, where there is no gate."""
        if self.causal_gate is not None:
            raise DualHeadError("Its gate depends on the text. Train with gate=none to merge.")
        return self.change.matrix(), self.change.up.bias


GUIDE = Hidden
