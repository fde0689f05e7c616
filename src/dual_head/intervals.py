"""How sure a number is: intervals for shares and for means. It knows nothing of what was measured."""

import math
import random
import statistics
from collections.abc import Sequence

Z95 = 1.959964


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a share successes / trials."""
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean; paired comparisons pass differences."""
    rng = random.Random(seed)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]
