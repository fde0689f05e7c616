"""What a gain costs: reward against divergence over the strengths of a guide, and gains of guides at equal divergence.

Two guides at alpha = 1 are seldom equally far from the backbone, and the one that is further often gains more. Their
curves over alpha are compared where both are equally far:

    gain
     |            .---o alpha 2
     |       .--o'        alpha 1
     |    x'              <- the gain at 5 nats, between two strengths
     | o'                 alpha 0.5
     0------5-----------> KL from the backbone, nats a reply
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dual_head.errors import DualHeadError
from dual_head.stats import crossed_draws, percentiles


@dataclass(frozen=True, kw_only=True)
class AtDivergence:
    """A gain at one divergence with its 95% interval; None where some draws of the curve do not reach it."""

    divergence: float
    gain: float | None
    interval: tuple[float, float] | None


def gain_at(divergences: ArrayLike, gains: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """Gains at divergences `at` [m] on straight lines between a curve's points [n], which starts at (0, 0).

    NaN past the curve's last point: nothing is extrapolated. Errors: shapes that differ.
    """
    x, y, wanted = (np.asarray(values, dtype=float) for values in (divergences, gains, at))
    if x.shape != y.shape or x.ndim != 1:
        raise DualHeadError(f"Divergences {x.shape} and gains {y.shape} must be two lists of equal length.")
    order = np.argsort(x, kind="stable")
    x, y = np.concatenate([[0.0], x[order]]), np.concatenate([[0.0], y[order]])
    return np.where(wanted <= x[-1], np.interp(wanted, x, y), np.nan)


def gains_at(divergences: ArrayLike, gains: ArrayLike, at: Sequence[float]) -> list[AtDivergence]:
    """Gains at each divergence of tables [strengths, seeds, prompts], seeds and prompts both resampled.

    A divergence that the mean curve reaches and fewer than 95% of the draws do has a gain and no interval.
    """
    means, draws = _curves(divergences, gains, at)
    return [_at(float(x), float(mean), column) for x, mean, column in zip(at, means, draws.T, strict=True)]


def differences_at(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], at: Sequence[float]
) -> list[AtDivergence]:
    """How much more the first gains than the second where both are equally far: (divergences, gains) as `gains_at`.

    Seeds and prompts are drawn alike for both. Errors: other numbers of seeds or prompts.
    """
    shapes = [np.shape(gains)[1:] for _, gains in (first, second)]
    if shapes[0] != shapes[1]:
        raise DualHeadError(f"Both need the same seeds and prompts, not {shapes[0]} and {shapes[1]}.")
    (mean_a, draws_a), (mean_b, draws_b) = (_curves(*one, at) for one in (first, second))
    means, draws = mean_a - mean_b, draws_a - draws_b
    return [_at(float(x), float(mean), column) for x, mean, column in zip(at, means, draws.T, strict=True)]


def _curves(divergences: ArrayLike, gains: ArrayLike, at: Sequence[float]) -> tuple[NDArray, NDArray]:
    """Gains at divergences [m] of the mean curve, and of curves of resampled seeds and prompts [draws, m]."""
    kl, gain = np.asarray(divergences, dtype=float), np.asarray(gains, dtype=float)
    if kl.shape != gain.shape or kl.ndim != 3:
        raise DualHeadError(
            f"Divergences {kl.shape} and gains {gain.shape} must be tables [strengths, seeds, prompts]."
        )
    draws = [
        gain_at(_mean(kl, seeds, prompts), _mean(gain, seeds, prompts), at)
        for seeds, prompts in crossed_draws(kl.shape[1], kl.shape[2])
    ]
    return gain_at(kl.mean((1, 2)), gain.mean((1, 2)), at), np.array(draws)


def _mean(table: NDArray, seeds: NDArray, prompts: NDArray) -> NDArray:
    return table[:, seeds].mean(1)[:, prompts].mean(1)


def best_of_divergence(n: int) -> float:
    """KL of the best of n samples from one sample, in nats a reply, at most: log n - (n - 1) / n.

    Source: Beirami et al. 2024, Theoretical guarantees on the best-of-n alignment policy.
    """
    return float(np.log(n) - (n - 1) / n)


def _at(divergence: float, mean: float, draws: NDArray[np.float64]) -> AtDivergence:
    reached = draws[np.isfinite(draws)]
    if np.isnan(mean):
        return AtDivergence(divergence=divergence, gain=None, interval=None)
    interval = percentiles(reached, interpolate=True) if len(reached) >= 0.95 * len(draws) else None
    return AtDivergence(divergence=divergence, gain=mean, interval=interval)
