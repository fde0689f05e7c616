"""Frontiers of several objectives: the points that no other beats, and the volume that they cover.

More is better in every objective.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dual_head.errors import DualHeadError
from dual_head.stats import draws, percentiles


@dataclass(frozen=True, kw_only=True)
class Hypervolume:
    """A volume, or a difference of two, with its 95% interval over resampled questions."""

    questions: int
    volume: float
    interval: tuple[float, float]


def pareto(points: ArrayLike) -> list[int]:
    """Indices of the points [n, k] that no other dominates: as good in every objective and better in one.

    Equal points do not dominate each other. Errors: points that are not finite numbers [n, k].
    """
    array = _finite(points, 2, "points", "[n, k]")
    return [i for i, point in enumerate(array) if not ((array >= point).all(1) & (array > point).any(1)).any()]


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume of what is dominated by one of the points [n, k] and dominates the reference [k], for any k.

    Exact, slice by slice along the last objective. A point below the reference in any objective adds nothing.
    Errors: numbers that are not finite, or shapes that do not match. Source: Zitzler and Thiele (1998).
    """
    array = _finite(points, 2, "points", "[n, k]")
    return _volume(array - _reference(reference, array.shape[1]))


def hypervolume_interval(
    values: ArrayLike, reference: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Hypervolume:
    """Hypervolume of the means of values [n, questions, k] over questions, questions resampled for all points alike."""
    array = _finite(values, 3, "values", "[n, questions, k]")
    origin = _reference(reference, array.shape[2])
    volumes = _resampled(array, origin, resamples, seed)
    volume = hypervolume(array.mean(1), origin)
    return Hypervolume(questions=array.shape[1], volume=volume, interval=percentiles(volumes))


def hypervolume_difference(
    values_a: ArrayLike, values_b: ArrayLike, reference: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Hypervolume:
    """Hypervolume of a less that of b, each of values [n, questions, k], on the same draws of the same questions.

    Errors: another number of questions or of objectives.
    """
    a = _finite(values_a, 3, "values", "[n, questions, k]")
    b = _finite(values_b, 3, "values", "[n, questions, k]")
    if a.shape[1:] != b.shape[1:]:
        raise DualHeadError(
            f"One frontier has {a.shape[1]} questions and {a.shape[2]} objectives, the other {b.shape[1]} and "
            f"{b.shape[2]}. Compare them on the same."
        )
    origin = _reference(reference, a.shape[2])
    differences = _resampled(a, origin, resamples, seed) - _resampled(b, origin, resamples, seed)
    volume = hypervolume(a.mean(1), origin) - hypervolume(b.mean(1), origin)
    return Hypervolume(questions=a.shape[1], volume=volume, interval=percentiles(differences))


def _resampled(
    values: NDArray[np.float64], reference: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Hypervolume [resamples] of each draw of questions."""
    questions = values.shape[1]
    volumes = []
    for block in draws(questions, resamples=resamples, seed=seed):
        for draw in block:
            copies = np.bincount(draw, minlength=questions)
            volumes.append(_volume(np.einsum("q,nqk->nk", copies, values) / questions - reference))
    return np.array(volumes)


def _volume(points: NDArray[np.float64]) -> float:
    """Hypervolume over the origin of points [n, k]."""
    points = points[(points > 0).all(1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    # Slices along the last objective, from the top: slice i lies below points 0 to i, and has the area that they cover.
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = points[:, -1] - np.append(points[1:, -1], 0.0)
    if points.shape[1] == 2:
        return float(heights @ np.maximum.accumulate(points[:, 0]))
    return float(sum(height * _volume(points[: i + 1, :-1]) for i, height in enumerate(heights) if height))


def _finite(numbers: ArrayLike, axes: int, name: str, shape: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(numbers, dtype=float)
    except (TypeError, ValueError):  # rows of unequal length, or words
        array = np.full((), np.nan)
    if array.ndim != axes or not array.size or not np.isfinite(array).all():
        raise DualHeadError(f"The {name} of a frontier are finite numbers {shape}, at least one in every direction.")
    return array


def _reference(reference: ArrayLike, objectives: int) -> NDArray[np.float64]:
    origin = _finite(reference, 1, "reference", "[k]")
    if len(origin) != objectives:
        raise DualHeadError(f"The reference has {len(origin)} numbers and the points {objectives}. Give one each.")
    return origin
