"""Per-token scalars of vocabulary-wide distributions, each with its derivative beside it.

With p = softmax(z), y the label, lse the logarithm of sum exp, and c the derivative of the loss by the scalar:

    policy_logps   log pi(y_t)                s = z_y - lse(z)                            dz = c (1[v = y] - p)
    base_logps     log pi_base(y_t)
    reward_logps   log pi_reward(y_t), of the guide's own distribution
    kl             KL(pi || pi_base), nats    s = sum_v p (z - b) - (lse(z) - lse(b))     dz = c p (log p - log p_b - s)
    second_kl      KL(pi_second || pi_base), of a second guide that is trained beside the first, by itself
    moved          total variation            s = sum_v |pi(v) - pi_base(v)| / 2          measured, never trained
    delta_norm     |delta_t|^2 at alpha = 1   s = sum_v delta^2                           ddelta = 2 c delta

A new scalar is a class of `Scalar` and an entry in `SCALARS`; a loss over it needs nothing else.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


class Distribution(NamedTuple):
    """One distribution at n tokens, p = softmax(logits [n, V]) = exp(logits - lse [n, 1]).

    weights [n, V], total [n, 1]: what p is the quotient of; only values know them, derivatives do with log p.
    """

    logits: Tensor
    lse: Tensor
    weights: Tensor
    total: Tensor

    def logp(self) -> Tensor:
        """log p, [n, V]."""
        return self.logits - self.lse

    def mean(self, x: Tensor) -> Tensor:
        """sum_v p x of x [n, V]: [n]."""
        return (self.weights * x).sum(-1) / self.total[:, 0]


class View(NamedTuple):
    """What a scalar reads at n tokens: its distribution p, the backbone's b where it is asked for, the labels [n].

    s [n, 1]: its value, for its derivative.
    """

    p: Distribution
    b: Any
    labels: Tensor
    s: Any = None


@dataclass(frozen=True)
class Scalar(ABC):
    """One number s a token, and its derivative by the logits z [n, V] of the distribution `of`.

    against_base: it also reads the backbone's distribution, which is a constant to it.
    """

    of: str
    against_base: ClassVar[bool] = False
    trainable: ClassVar[bool] = True  # False: no loss can train it, so that it has no derivative

    @property
    def reads(self) -> tuple[str, ...]:
        """The distributions it is computed from."""
        return (self.of, "base") if self.against_base else (self.of,)

    @abstractmethod
    def value(self, at: View) -> Tensor:
        """s, [n]."""

    def derivative(self, at: View) -> tuple[Any, Any]:
        """ds/dz = p f + g as (f, g), each [n, V], [n, 1], a number, or None for 0."""
        raise NotImplementedError(f"{type(self).__name__} has no derivative")


class LogProbability(Scalar):
    """log p(y)."""

    def value(self, at: View) -> Tensor:
        """z_y - lse(z)."""
        return at.p.logits.gather(-1, at.labels[:, None])[:, 0] - at.p.lse[:, 0]

    def derivative(self, at: View) -> tuple[Any, Any]:
        """1[v = y] - p."""
        return -1.0, _one_hot(at.labels, at.p.logits)


class Divergence(Scalar):
    """KL(p || b) in nats."""

    against_base = True

    def value(self, at: View) -> Tensor:
        """sum_v p_v (z_v - b_v) - (lse(z) - lse(b)): the constants leave the sum."""
        return at.p.mean(at.p.logits - at.b.logits) - (at.p.lse[:, 0] - at.b.lse[:, 0])

    def derivative(self, at: View) -> tuple[Any, Any]:
        """p (log p - log b - s)."""
        return at.p.logp() - at.b.logp() - at.s, None


class TotalVariation(Scalar):
    """The share of probability that moved from b to p."""

    against_base, trainable = True, False

    def value(self, at: View) -> Tensor:
        """sum_v |p_v - b_v| / 2."""
        return (at.p.weights / at.p.total - at.b.weights / at.b.total).abs().sum(-1) / 2


class SquaredNorm(Scalar):
    """|delta|^2 of what stands in the place of logits."""

    def value(self, at: View) -> Tensor:
        """sum_v delta_v^2."""
        return at.p.logits.square().sum(-1)

    def derivative(self, at: View) -> tuple[Any, Any]:
        """2 delta."""
        return None, 2 * at.p.logits


SCALARS: dict[str, Scalar] = {
    "policy_logps": LogProbability("policy"),
    "reward_logps": LogProbability("reward"),
    "base_logps": LogProbability("base"),
    "kl": Divergence("policy"),
    "second_kl": Divergence("second"),
    "moved": TotalVariation("policy"),
    "delta_norm": SquaredNorm("delta"),
}
DELTA = "delta"  # the one entry that is not a distribution, so that it is not normalised


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """1[v = y], [n, V]; compared as floats, which hold every id below 2^24 and are as wide as the logits."""
    words = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return (words == labels[:, None].to(logits.dtype)).to(logits.dtype)
