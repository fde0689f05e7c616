"""Losses of preference on the log-probabilities a distribution gives to whole responses: DPO's family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from dual_head.errors import DualHeadError
from dual_head.losses.base import Objective, Terms
from dual_head.ops.token_scores import Scored

Form = Literal["sigmoid", "robust", "hinge", "ipo"]


def _sigmoid(margin: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def _robust(margin: Tensor, smoothing: float) -> Tensor:
    flipped = (1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    return -flipped / (1 - 2 * smoothing)


def _hinge(margin: Tensor, _smoothing: float) -> Tensor:
    return F.relu(1 - margin)


MARGIN_LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {"sigmoid": _sigmoid, "robust": _robust, "hinge": _hinge}


@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """L(m), m = beta [s(y+) - s(y-)], s(y) = sum_t log pi(y_t) - sum_t log pi_base(y_t), response tokens only.

        form       L                                                                source
        sigmoid    -(1 - e) log sigmoid(m) - e log sigmoid(-m)                      Rafailov 2023; e > 0: Mitchell 2023
        robust     [-(1 - e) log sigmoid(m) + e log sigmoid(-m)] / (1 - 2 e)        Ray Chowdhury et al. 2024
        hinge      max(0, 1 - m)                                                    Zhao et al. 2023
        ipo        (s(y+) / |y+| - s(y-) / |y-| - 1 / (2 beta))^2                   Azar 2023, averaged as in TRL

    label_smoothing: e, the share of pairs whose preference is taken to be the wrong way round.
    through: "reward", the reward head's own distribution, as GenARM and Dual-Head have it (no reference model);
    or "policy", through the fused logits, so that the gate learns from preferences too. reference_free leaves
    out the second sum; with it, through the policy, this is DPO's loss with the frozen backbone as reference.
    beta multiplies the difference once. Metrics: accuracy and margin of these rewards (margin in units of beta
    nats), and accuracy_over_base, of the rewards less the backbone's own log-probabilities in any case.
    """

    beta: float = 0.05
    through: Literal["reward", "policy"] = "reward"
    reference_free: bool = True
    form: Form = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.beta <= 0:
            raise DualHeadError(f"beta must be above 0, not {self.beta}.")
        if self.form not in get_args(Form):
            raise DualHeadError(f"form must be one of {', '.join(get_args(Form))}, not '{self.form}'.")
        if not 0 <= self.label_smoothing < 0.5:
            raise DualHeadError(f"label_smoothing is a share of pairs below 0.5, not {self.label_smoothing}.")
        if self.label_smoothing and self.form in ("hinge", "ipo"):
            raise DualHeadError(f"The form '{self.form}' has no label_smoothing. Take sigmoid or robust.")

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
        return Terms(self._loss(scored, margin), metrics)

    def _loss(self, scored: Scored, margin: Tensor) -> Tensor:
        if self.form != "ipo":
            return MARGIN_LOSSES[self.form](margin, self.label_smoothing)
        chosen, rejected = scored.means(f"{self.through}_logps")
        if not self.reference_free:
            base_chosen, base_rejected = scored.means("base_logps")
            chosen, rejected = chosen - base_chosen, rejected - base_rejected
        return (chosen - rejected - 1 / (2 * self.beta)).square()


OBJECTIVE = Preference
