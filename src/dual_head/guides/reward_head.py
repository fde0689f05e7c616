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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dual_head.backbone import BackboneShape, Features
from dual_head.errors import DualHeadError
from dual_head.guides.base import CacheSlot, Guide, GuideConfig, States


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
        if self.rank is not None and self.rank < 1:
            raise DualHeadError(f"rank must be at least 1, or null for a full head, not {self.rank}.")
        if self.num_heads < 1 or self.head_dim < 1:
            raise DualHeadError(f"num_heads and head_dim must be at least 1, not {self.num_heads} and {self.head_dim}.")
        if self.init_std < 0:
            raise DualHeadError(f"init_std must not be negative, but is {self.init_std}.")


class CausalGate(nn.Module):
    """The logit of the gate, s_t = w . MHA(h_t, H_1:t) + b: 3 d (heads x width) + heads x width + 1 parameters.

    W_O is left out: followed by a single output row, W_g W_O is itself one vector.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.query = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.output = nn.Linear(num_heads * head_dim, 1)
        nn.init.zeros_(self.output.bias)  # gates start near one half, where the sigmoid is steepest

    def forward(self, features: Features, cache: CacheSlot | None) -> Tensor:
        """Map features [B, T, d] to gate logits [B, T]."""
        hidden = features.hidden.to(self.query.weight.dtype)
        q, k, v = (self._split(project(hidden)) for project in (self.query, self.key, self.value))
        if cache is not None:
            k, v = cache.update(k, v)
        causal = features.mask is None and q.shape[-2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=features.mask, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2)).squeeze(-1)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # [B, heads, T, width]


class RewardHead(Guide):
    """delta_t = g_t D h_t with D = W_RM - W_LM [V, d], full or of low rank.

    Source: the Dual-Head paper; width of the gate and the frozen LM head as docs/seeds.md explains.
    """

    Config = RewardHeadConfig
    config: RewardHeadConfig

    def __init__(self, config: RewardHeadConfig, shape: BackboneShape):
        super().__init__(config, shape)
        inner = shape.hidden_size if config.rank is None else config.rank
        self.down = None if config.rank is None else nn.Linear(shape.hidden_size, inner, bias=False)
        self.difference = nn.Linear(inner, shape.vocab_size, bias=config.bias)
        nn.init.normal_(self.difference.weight, std=config.init_std)
        if config.bias:
            nn.init.zeros_(self.difference.bias)
        attends = config.gate == "attention"
        self.causal_gate = CausalGate(shape.hidden_size, config.num_heads, config.head_dim) if attends else None

    @property
    def cache_layers(self) -> int:
        """One layer of keys and values for the attention gate, none for a constant."""
        return 0 if self.causal_gate is None else 1

    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Carry h_t over, and add the gate's logit where there is an attention gate."""
        if self.causal_gate is None:
            return {"hidden": features.hidden}
        return {"hidden": features.hidden, "gate_logit": self.causal_gate(features, cache)}

    def direction(self, states: States, base: Tensor) -> Tensor:
        """D h_t, [n, d] to [n, V]: the reward head's logits less the backbone's."""
        del base
        hidden = states["hidden"].to(self.difference.weight.dtype)
        return self.difference(hidden if self.down is None else self.down(hidden))

    def gate_logit(self, states: States) -> Tensor | None:
        """Return s_t [n] in fp32, or None with a constant gate."""
        s = states.get("gate_logit")
        return None if s is None else s.float()

    def gate(self, states: States) -> Tensor | float:
        """sigmoid(s_t) [n], or the configured constant."""
        s = self.gate_logit(states)
        return self.config.gate_value if s is None else torch.sigmoid(s)


GUIDE = RewardHead
