"""What an objective is: per-token scalars in, one loss per pair and metrics per pair out.

Every term is an average over pairs of a per-pair value, so that gradient accumulation and data parallelism
give the gradient of one large batch. One number alone is of a whole batch, `Scored.divergence`. It knows no model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from dual_head.errors import DualHeadError
from dual_head.ops.token_scores import Scored

LearnsFrom = Literal["pairs", "feedback", "both"]  # feedback: single replies with labels


@dataclass(frozen=True)
class Terms:
    """loss: [B], before the weight; metrics: {name: [B]}, logged and never differentiated."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A pure function of scalars, and the weight it has in the sum; weight 0 means: only measure it."""

    weight: float = 1.0
    reads_rejected: ClassVar[bool] = True  # False: it needs its scalars of chosen responses alone
    learns_from: ClassVar[LearnsFrom] = "pairs"

    def __post_init__(self):
        if self.weight < 0:
            raise DualHeadError(f"A weight must not be negative, but is {self.weight}.")

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """The per-token scalars the loss is computed from, by their names in `scalars`, or "gate_logit"."""

    @property
    def metric_needs(self) -> frozenset[str]:
        """The scalars that its metrics read besides; they are missing in steps that are not logged."""
        return frozenset()

    @abstractmethod
    def __call__(self, scored: Scored) -> Terms:
        """Compute the loss and metrics of a batch of pairs, or of single replies."""
