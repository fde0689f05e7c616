"""The Dual-Head guide: a reward head beside the frozen LM head, and a causal attention gate between them.

    z_t = z_LM,t + g_t (z_RM,t - z_LM,t),      z_RM,t - z_LM,t = (W_RM - W_LM) h_t = D h_t
    g_t = sigmoid(w . MultiHeadAttention(h_t, H_1:t) + b)

The head stores the difference D, not W_RM: D = 0 is exactly the backbone, weight decay pulls towards it,
soft-capped and scaled backbones need no second treatment, and a low rank is spent on the difference.
The gate keeps its own keys and values in the generation cache, so that decoding with a cache equals one
pass over the whole sequence. This file knows nothing of losses or of other guides.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dual_head.backbone.decoder import BackboneShape
from dual_head.errors import DualHeadError
from dual_head.guides.base import Guide, GuideConfig, States
from dual_head.guides.layers import CausalGate, LinearMap, require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class RewardHeadConfig(GuideConfig):
    """Options of the Dual-Head guide.

    rank: None for a full d x V head, r for D = B A with r (d + V) parameters; bias: add b_RM - b_LM;
    init_std: standard deviation of D at the start, 0 gives delta = 0 (gradients reach D through the open
    gate at once, and the gate through D from the second step on); gate: "attention" or the ablation
    "constant" with gate_value; num_heads x head_dim is the gate's inner width (num_heads=1 is the
    single-head ablation).
    """

    rank: int | None = None
    bias: bool = False
    init_std: float = 0.0
    gate: Literal["attention", "constant"] = "attention"
    gate_value: float = 0.5
    num_heads: int = 8
    head_dim: int = 48

    def __post_init__(self):
        if self.gate not in ("attention", "constant"):
            raise DualHeadError(f"gate must be 'attention' or 'constant', not '{self.gate}'.")
        if not 0 < self.gate_value <= 1:
            raise DualHeadError(f"gate_value must lie in (0, 1], not {self.gate_value}.")
        require_positive(rank=self.rank, num_heads=self.num_heads, head_dim=self.head_dim)
        require_not_negative(init_std=self.init_std)


class RewardHead(Guide):
    """delta_t = g_t D h_t with D = W_RM - W_LM [V, d], full or of low rank.

    Source: the Dual-Head paper; width of the gate and the frozen LM head as docs/provenance explains.
    """

    Config = RewardHeadConfig
    config: RewardHeadConfig

    def __init__(self, config: RewardHeadConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.difference = LinearMap(
            shape.hidden_size, shape.vocab_size, rank=config.rank, bias=config.bias, init_std=config.init_std
        )
        if config.gate == "attention":
            self.causal_gate = CausalGate(shape.hidden_size, config.num_heads, config.head_dim)

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """D h_t, [n, d] to [n, V]: the reward head's logits less the backbone's."""
        del base
        return self.difference(states["hidden"])

    def reward_logits(self, states: States, lm_head: Tensor) -> Tensor | None:
        """(W + D) h_t, [n, d] to [n, V]."""
        return self.difference.onto(states["hidden"], lm_head)

    def gate(self, states: States) -> Tensor | float:
        """sigmoid(s_t) [n], or the configured constant."""
        s = self.gate_logit(states)
        return self.config.gate_value if s is None else s.sigmoid()

    def linear_map(self) -> tuple[Tensor, Tensor | None]:
        """gate_value D, where the gate is constant."""
        if self.causal_gate is not None:
            raise DualHeadError(
                "Its gate depends on the text, so no one matrix does what it does. Train with gate=constant to merge."
            )
        bias = self.difference.up.bias
        value = self.config.gate_value
        return value * self.difference.matrix(), None if bias is None else value * bias


GUIDE = RewardHead
