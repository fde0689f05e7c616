"""The linear guide of IAV: one alignment head beside the lm_head, and nothing that depends on the sequence.

    delta_t = W_a h_t + b

Zero at the start, so that training begins at the backbone. At a fixed alpha it merges into the lm_head.
This file knows nothing of losses or of other guides.
"""

from dataclasses import dataclass

from torch import Tensor

from dual_head.backbone.decoder import BackboneShape
from dual_head.guides.base import Guide, GuideConfig, States
from dual_head.guides.layers import LinearMap, require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class LinearConfig(GuideConfig):
    """Options of the linear guide.

    rank: None for a full d x V head, r for W_a = B A with r (d + V) parameters; bias: add b; init_std:
    standard deviation of W_a (or B) at the start, 0 gives delta = 0.
    """

    rank: int | None = None
    bias: bool = False
    init_std: float = 0.0

    def __post_init__(self):
        require_positive(rank=self.rank)
        require_not_negative(init_std=self.init_std)


class Linear(Guide):
    """delta_t = W_a h_t + b, W_a [V, d] of full or low rank. Source: IAV, as docs/provenance explains."""

    Config = LinearConfig
    config: LinearConfig

    def __init__(self, config: LinearConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.head = LinearMap(
            shape.hidden_size, shape.vocab_size, rank=config.rank, bias=config.bias, init_std=config.init_std
        )

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """W_a h_t + b, [n, d] to [n, V]."""
        del base
        return self.head(states["hidden"])

    def linear_map(self) -> tuple[Tensor, Tensor | None]:
        """W_a and b."""
        return self.head.matrix(), self.head.up.bias


GUIDE = Linear
