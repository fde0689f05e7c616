"""Divergence of the guided policy from the backbone, over the whole vocabulary."""

from dataclasses import dataclass

from dual_head.objectives.base import Objective, Terms
from dual_head.reductions import Scored


@dataclass(frozen=True, kw_only=True)
class Kl(Objective):
    """L = (KL_chosen + KL_rejected) / 2, each mean_t KL(pi(. | y_<t) || pi_base(. | y_<t)) in nats per token."""

    @property
    def needs(self) -> frozenset[str]:
        """The divergence at every response token."""
        return frozenset({"kl"})

    def __call__(self, scored: Scored) -> Terms:
        """Average divergence of each pair, [B]."""
        chosen, rejected = scored.means("kl")
        return Terms((chosen + rejected) / 2)


OBJECTIVE = Kl
