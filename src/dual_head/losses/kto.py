"""KTO's loss on single replies, each with a label: desirable or not."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dual_head.errors import DualHeadError
from dual_head.losses.base import LearnsFrom, Objective, Terms
from dual_head.ops.token_scores import Scored


@dataclass(frozen=True, kw_only=True)
class Kto(Objective):
    """L = lambda_y [1 - sigmoid(s beta (r - z_0))], r = sum_t log pi(y_t) - sum_t log pi_base(y_t), in nats.

    A desirable reply has s = 1 and lambda_y = desirable_weight, an undesirable one s = -1 and undesirable_weight.
    z_0 = max(0, mean of r over the batch, each prompt with a reply to another) estimates KL(pi || pi_base) without a
    gradient; it is of one forward, and of all processes.

    Metrics: reward, beta r; margin, s beta (r - z_0); accuracy, margin above 0; divergence, z_0.
    Source: Ethayarajh et al. 2024, equations (7) and (8), with the values of TRL's KTOTrainer.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reads_rejected: ClassVar[bool] = False
    learns_from: ClassVar[LearnsFrom] = "feedback"

    def __post_init__(self):
        super().__post_init__()
        if self.beta <= 0:
            raise DualHeadError(f"beta must be above 0, not {self.beta}.")
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) < 0:
                raise DualHeadError(f"{name} must not be negative, but is {getattr(self, name)}.")

    @property
    def needs(self) -> frozenset[str]:
        """The log-probabilities of the policy and of the backbone, which is the reference."""
        return frozenset({"policy_logps", "base_logps"})

    def __call__(self, scored: Scored) -> Terms:
        """Loss of each reply, [B]. Errors: a batch of pairs."""
        if scored.desirable is None or scored.divergence is None:
            raise DualHeadError(
                "KTO learns from single replies with labels, and these are pairs. Read them with load_feedback and "
                "tokenise them with tokenize_feedback: a pair then gives two replies."
            )
        policy, _ = scored.sums("policy_logps")
        base, _ = scored.sums("base_logps")
        ratio = policy - base
        margin = self.beta * torch.where(scored.desirable, 1.0, -1.0) * (ratio - scored.divergence)
        weight = torch.where(scored.desirable, self.desirable_weight, self.undesirable_weight)
        metrics: dict[str, Tensor] = {
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "reward": self.beta * ratio,
            "divergence": scored.divergence.expand_as(margin),
        }
        return Terms(weight * (-margin).sigmoid(), metrics)


OBJECTIVE = Kto
