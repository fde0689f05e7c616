"""How sure a number is: intervals for shares, for means, and for any statistic of resampled values."""

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964
AT_ONCE = 2_000_000  # indices held in memory at a time


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a share successes / trials."""
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def draws(count: int, *, resamples: int = 2000, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Draw `resamples` times `count` indices below `count` with replacement: blocks [r, count], r summing to resamples.

    Equal count and seed give equal draws, so that figures of the same questions are compared on the same draws.
    """
    yield from _blocks(np.random.default_rng(seed), count, resamples)


def crossed_draws(
    rows: int, columns: int, *, resamples: int = 2000, seed: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Draw `resamples` times the rows and the columns of a table, both with replacement: ([rows], [columns]).

    Rows are seeds, columns what every seed answers. Both are chance: of few seeds, a difference that holds on any
    columns may still be these seeds' own. Equal sizes and seed give equal draws, as with `draws`.
    """
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, rows, size=(resamples, rows))
    yield from zip(seeds, (draw for block in _blocks(rng, columns, resamples) for draw in block), strict=True)


def crossed(table: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Mean of a table [seeds, columns] and its 95% interval, where seeds and columns are both resampled."""
    values = np.asarray(table, dtype=float)
    pairs = crossed_draws(*values.shape, resamples=resamples, seed=seed)
    means = [values[seeds].mean(0)[columns].mean() for seeds, columns in pairs]
    return float(values.mean()), percentiles(means, interpolate=True)


def percentiles(statistics: ArrayLike, *, interpolate: bool = False) -> tuple[float, float]:
    """95% percentile interval of a statistic's bootstrap draws [resamples]; interpolate: between two draws, or one."""
    if interpolate:
        low, high = np.percentile(np.asarray(statistics, dtype=float), [2.5, 97.5])
        return float(low), float(high)
    ranks = np.sort(np.asarray(statistics, dtype=float))
    return float(ranks[int(0.025 * len(ranks))]), float(ranks[max(0, int(0.975 * len(ranks)) - 1)])


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean; paired comparisons pass differences."""
    sample = np.asarray(values, dtype=float)
    if sample.min() == sample.max():
        return float(sample[0]), float(sample[0])  # a mean of equal numbers is rounded
    return percentiles(np.concatenate([sample[i].mean(1) for i in draws(len(sample), resamples=resamples, seed=seed)]))


def summary(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean of the values that are not None, its 95% bootstrap interval, and counts: {mean, interval, n, missing}."""
    column = list(values)
    numbers = [value for value in column if value is not None]
    return {
        "mean": fmean(numbers) if numbers else None,
        "interval": list(bootstrap_mean(numbers)) if numbers else None,
        "n": len(numbers),
        "missing": len(column) - len(numbers),
    }


def _blocks(rng: np.random.Generator, count: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [r, count] of indices below `count`, the same whatever their size."""
    block = max(1, AT_ONCE // count)
    for start in range(0, resamples, block):
        yield rng.integers(0, count, size=(min(block, resamples - start), count))
