"""Size of what a guide adds, to keep alignment vectors small."""

from dataclasses import dataclass
from typing import ClassVar

from dual_head.losses.base import LearnsFrom, Objective, Terms
from dual_head.ops.token_scores import Scored


@dataclass(frozen=True, kw_only=True)
class Norm(Objective):
    """L = (l2_chosen + l2_rejected) / 2, each mean_t |delta_t|^2 at alpha = 1, over the vocabulary (or the width d).

    Of a single reply it is that reply's.
    """

    learns_from: ClassVar[LearnsFrom] = "both"

    @property
    def needs(self) -> frozenset[str]:
        """The squared norm of the delta at every response token."""
        return frozenset({"delta_norm"})

    def __call__(self, scored: Scored) -> Terms:
        """Mean squared norm of each pair, [B]."""
        return Terms(scored.averages("delta_norm"))


OBJECTIVE = Norm
