"""Bradley-Terry loss on the log-probabilities a distribution gives to whole responses."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F

from dual_head.errors import DualHeadError
from dual_head.objectives.base import Objective, Terms
from dual_head.reductions import Scored


@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """L = -log sigmoid(beta [sum_t log pi(y+_t) - sum_t log pi(y-_t)]), response tokens only.

    through: "reward", the reward head's own distribution, as GenARM and Dual-Head have it (no reference model);
    or "policy", through the fused logits, so that the gate learns from preferences too. beta multiplies the
    difference once. Metrics: accuracy and margin of these rewards (margin in units of beta nats), and
    accuracy_over_base, of the rewards less the backbone's own log-probabilities.
    """

    beta: float = 0.05
    through: Literal["reward", "policy"] = "reward"

    def __post_init__(self):
        super().__post_init__()
        if self.beta <= 0:
            raise DualHeadError(f"beta must be above 0, not {self.beta}.")

    @property
    def needs(self) -> frozenset[str]:
        """The log-probabilities of the chosen distribution, and the backbone's for a metric."""
        return frozenset({f"{self.through}_logps", "base_logps"})

    def __call__(self, scored: Scored) -> Terms:
        """Preference loss of each pair, [B]."""
        chosen, rejected = scored.sums(f"{self.through}_logps")
        base_chosen, base_rejected = scored.sums("base_logps")
        margin = self.beta * (chosen - rejected)
        over_base = margin - self.beta * (base_chosen - base_rejected)
        metrics = {
            "accuracy": (margin > 0).float(),
            "accuracy_over_base": (over_base > 0).float(),
            "margin": margin,
            "reward_chosen": self.beta * chosen,
            "reward_rejected": self.beta * rejected,
        }
        return Terms(-F.logsigmoid(margin), metrics)


OBJECTIVE = Preference
