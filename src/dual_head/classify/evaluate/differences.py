"""How far apart classifiers are on the same rows: the figures of all are taken on the same draws.

Of one classifier each, rows are resampled (in their groups); of several trainings of each, seeds and rows both. It
knows measured rows, and neither models nor files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dual_head.classify.evaluate.metrics import Rows, resampled
from dual_head.errors import DualHeadError
from dual_head.evaluate.compare.win_rates import sign_test
from dual_head.stats import crossed_draws, percentiles

__all__ = ["MAIN", "differences", "mcnemar", "of_seeds"]

# Calibration errors are left out: resampling adds as much to them as what is measured.
MAIN = ("accuracy", "exact_match", "macro_f1", "micro_f1", "nll", "f1a", "em")

Floats = NDArray[np.float64]


def differences(first: Rows, second: Rows, *, resamples: int = 2000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Figures of the second less those of the first: {metric: {"difference", "interval"}} of the `MAIN` metrics.

    Interval: 95% percentile bootstrap of f(second, w) - f(first, w), the same groups w drawn for both. Errors: rows of
    other groups.
    """
    _require_same_groups([first, second])
    means, others = first.figures(), second.figures()
    before, after = (resampled(rows, resamples=resamples, seed=seed) for rows in (first, second))
    return {
        name: {
            "difference": float(others[name] - means[name]),
            "interval": list(percentiles(after[name] - before[name])),
        }
        for name in MAIN
        if name in means
    }


def mcnemar(first: ArrayLike, second: ArrayLike) -> dict[str, Any]:
    """Count the rows that one of two systems alone gets right: right [N] (1 or True where it is) of each.

    only_first, only_second: how many; p_value: McNemar's, exact and two-sided, rows taken as independent. Errors:
    different lengths, no rows.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise DualHeadError(f"Two systems are compared on the same rows, not on {a.shape} and {b.shape}.")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    return {
        "only_first": only_first,
        "only_second": only_second,
        "p_value": sign_test(only_second, only_first),
    }


def of_seeds(
    systems: Mapping[str, Sequence[Rows]], *, over: Sequence[str] = (), resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures of systems that were trained at the same S seeds: {system: {metric: {"mean", "interval", ...}}}.

    systems: the rows of each, one `Rows` for each seed, in the seeds' order. mean: 1/S sum_s f_s; interval: 95%
    percentile bootstrap of 1/S sum_i f_{s_i}(w), the seeds s_i and the groups w both drawn with replacement, the same
    ones for all systems; by_seed: f_s [S]; over: {other: {"difference", "interval"}} from each system named in `over`
    that is there. Of one seed, an interval says nothing of others. Errors: other groups, other numbers of seeds.
    """
    every = [rows for by_seed in systems.values() for rows in by_seed]
    _require_same_groups(every)
    if len({len(by_seed) for by_seed in systems.values()}) != 1:
        raise DualHeadError("Systems are compared at the same seeds. Train each of them at all of them.")
    means = {name: [rows.figures() for rows in by_seed] for name, by_seed in systems.items()}
    drawn = {name: _crossed(by_seed, resamples, seed) for name, by_seed in systems.items()}
    summaries: dict[str, dict[str, dict[str, Any]]] = {}
    for name, seeds in means.items():
        summaries[name] = {}
        for metric in (metric for metric in MAIN if metric in seeds[0]):
            values = [figures[metric] for figures in seeds]
            summaries[name][metric] = {
                "mean": float(np.mean(values)),
                "interval": list(percentiles(drawn[name][metric], interpolate=True)),
                "by_seed": [float(value) for value in values],
                "over": {
                    other: {
                        "difference": float(np.mean(values) - np.mean([one[metric] for one in means[other]])),
                        "interval": list(percentiles(drawn[name][metric] - drawn[other][metric], interpolate=True)),
                    }
                    for other in over
                    if other in systems and other != name
                },
            }
    return summaries


def _crossed(by_seed: Sequence[Rows], resamples: int, seed: int) -> dict[str, Floats]:
    """Every metric, means over drawn seeds on drawn groups [resamples]."""
    drawn: dict[str, list[float]] = {}
    groups = by_seed[0].groups
    for seeds, columns in crossed_draws(len(by_seed), groups, resamples=resamples, seed=seed):
        times = np.bincount(columns, minlength=groups).astype(float)
        figures = {i: by_seed[i].figures(times) for i in set(seeds.tolist())}
        for name in figures[seeds[0]]:
            drawn.setdefault(name, []).append(float(np.mean([figures[i][name] for i in seeds.tolist()])))
    return {name: np.array(values) for name, values in drawn.items()}


def _require_same_groups(every: Sequence[Rows]) -> None:
    if not every or any(not np.array_equal(rows.group, every[0].group) for rows in every):
        sizes = sorted({len(rows.group) for rows in every})
        raise DualHeadError(
            f"Systems are compared on the same rows in the same groups, not on {' and '.join(map(str, sizes)) or 'no'} "
            "rows. Measure them on the same data."
        )
