"""Bradley-Terry loss on the log-probabilities a distribution gives to whole responses."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F

from dual_head.errors import DualHeadError
from dual_head.losses.base import Objective, Terms
from dual_head.ops.token_scores import Scored


@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """L = -log sigmoid(beta [s(y+) - s(y-)]), s(y) = sum_t log pi(y_t) - sum_t log pi_base(y_t), response tokens only.

    through: "reward", the reward head's own distribution, as GenARM and Dual-Head have it (no reference model);
    or "policy", through the fused logits, so that the gate learns from preferences too. reference_free leaves
    out the second sum; with it, through the policy, this is DPO's loss with the frozen backbone as reference.
    beta multiplies the difference once. Metrics: accuracy and margin of these rewards (margin in units of beta
    nats), and accuracy_over_base, of the rewards less the backbone's own log-probabilities in any case.
    """

    beta: float = 0.05
    through: Literal["reward", "policy"] = "reward"
    reference_free: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.beta <= 0:
            raise DualHeadError(f"beta must be above 0, not {self.beta}.")

    @property
    def needs(self) -> frozenset[str]:
        """The log-probabilities of the chosen distribution, and the backbone's where it is the reference."""
        scalars = {f"{self.through}_logps"}
        return frozenset(scalars if self.reference_free else scalars | {"base_logps"})

    @property
    def metric_needs(self) -> frozenset[str]:
        """The backbone's log-probabilities, for accuracy_over_base."""
        return frozenset({"base_logps"})

    def __call__(self, scored: Scored) -> Terms:
        """Preference loss of each pair, [B]."""
        chosen, rejected = scored.sums(f"{self.through}_logps")
        over_backbone = {}
        if "base_logps" in scored.values:
            base_chosen, base_rejected = scored.sums("base_logps")
            over_base = self.beta * (chosen - base_chosen - rejected + base_rejected)
            over_backbone = {"accuracy_over_base": (over_base > 0).float()}
            if not self.reference_free:
                chosen, rejected = chosen - base_chosen, rejected - base_rejected
        margin = self.beta * (chosen - rejected)
        metrics = {
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "reward_chosen": self.beta * chosen,
            "reward_rejected": self.beta * rejected,
            **over_backbone,
        }
        return Terms(-F.logsigmoid(margin), metrics)


OBJECTIVE = Preference
