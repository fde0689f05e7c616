"""Divergence of the guided policy from the backbone, over the whole vocabulary."""

from dataclasses import dataclass
from typing import ClassVar

from dual_head.losses.base import LearnsFrom, Objective, Terms
from dual_head.ops.token_scores import Scored


@dataclass(frozen=True, kw_only=True)
class Kl(Objective):
    """L = (KL_chosen + KL_rejected) / 2, each mean_t KL(pi(. | y_<t) || pi_base(. | y_<t)) in nats per token.

    Of a single reply it is that reply's.
    of: "policy", the guided policy at alpha = 1; or the name of the second guide, of that one alone.
    """

    of: str = "policy"
    learns_from: ClassVar[LearnsFrom] = "both"

    @property
    def needs(self) -> frozenset[str]:
        """The divergence at every response token."""
        return frozenset({self._scalar})

    @property
    def _scalar(self) -> str:
        return "kl" if self.of == "policy" else "second_kl"

    def __call__(self, scored: Scored) -> Terms:
        """Average divergence of each pair, [B]."""
        return Terms(scored.averages(self._scalar))


OBJECTIVE = Kl
