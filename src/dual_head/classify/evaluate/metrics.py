"""How good class logits are: what is right, how sure they are of it, and how sure one can be of either.

Everything is numpy in float64, and every figure comes with a 95% interval. Rows of one group (the answers to one
question of MultiRC) are resampled together, since they are not independent. It knows logits and labels, and neither
models nor text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dual_head.classify.calibration import group_numbers, log_probabilities, probabilities, require_matching, scaled
from dual_head.stats import draws, percentiles, wilson

__all__ = ["BINS", "Rows", "as_rows", "reliability", "report", "resampled"]

BINS = 15  # of the calibration error, as Guo et al. 2017 have it
# Noise makes them larger, and resampling adds as much again: draws are reflected, 2 m - m*, at the mean m.
BIASED = ("ece", "adaptive_ece")
MULTI_LABEL_CUT = 0.5  # a label is given from this probability on, and a row has it from this share on

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats, Floats], dict[str, float]]  # weights of rows [N] and of groups [G] to figures


@dataclass(frozen=True, eq=False)
class Rows:
    """Measured rows, and what they say under any weights: what a bootstrap draws from.

    group: number of each row's group [N], from 0; confusion: as `report` has it; statistic: weights to figures.
    """

    group: Ints
    confusion: Ints
    statistic: Statistic

    @property
    def groups(self) -> int:
        """How many groups there are: as many as rows, where each is a question of its own."""
        return int(self.group.max()) + 1

    def figures(self, times: Floats | None = None) -> dict[str, float]:
        """Every metric, each group counted so many times [G]; once by default."""
        times = np.ones(self.groups) if times is None else times
        return self.statistic(times[self.group], times)


def report(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    multi_label: bool | None = None,
    temperature: ArrayLike = 1.0,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure logits [N, K] against labels: {"rows", metric: {"mean", "interval"}, ..., "classes", "confusion"}.

    labels: [N] classes, [N, K] shares (the largest is what is right), or zeros and ones for several labels a row, also
    shares where multi_label says so (from 0.5 on a row has the label); groups: rows that are equal in it are one
    question ("" is a question of its own); multi_label: told from labels
    where None. Metrics: accuracy, macro_f1, nll (nats), brier (sum over classes), ece and adaptive_ece (15 bins);
    for two classes in groups f1a (F1 of class 1 over all rows) and em (groups with every row right); for several
    labels a row exact_match, micro_f1, macro_f1, nll and brier (means over labels). Intervals: Wilson where a share of
    independent rows or groups, else a percentile bootstrap over groups. Errors: shapes that do not fit, no rows, a
    label that is no class.
    """
    rows = as_rows(logits, labels, groups=groups, multi_label=multi_label, temperature=temperature)
    size, count = len(rows.group), rows.groups
    figures: dict[str, Any] = {"rows": size}
    trials: dict[str, int] = dict.fromkeys(("accuracy", "exact_match"), size)  # shares of what is independent
    if count < size:
        figures["groups"], trials = count, {"em": count}
    spread = resampled(rows, resamples=resamples, seed=seed)
    for name, mean in rows.figures().items():
        share, drawn = name in trials, spread[name]
        if name in BIASED:
            drawn = np.maximum(0, 2 * mean - drawn)
        low, high = wilson(round(mean * trials[name]), trials[name]) if share else percentiles(drawn)
        figures[name] = {"mean": float(mean), "interval": [min(low, float(mean)), max(high, float(mean))]}
    names = list(map(str, range(np.shape(logits)[1]))) if names is None else list(names)
    return figures | {"classes": _classes(rows.confusion, names), "confusion": rows.confusion.tolist()}


def as_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    multi_label: bool | None = None,
    temperature: ArrayLike = 1.0,
) -> Rows:
    """Make logits [N, K] and labels ready to be measured under any weights. Arguments and errors: as of `report`."""
    z, targets = np.asarray(logits, dtype=float), np.asarray(labels)
    multi_label = _is_multi_label(targets) if multi_label is None else multi_label
    require_matching(z, targets, multi_label)
    group = group_numbers(groups, len(z))
    if multi_label:
        return Rows(group, *_several(z, targets, temperature))
    return Rows(group, *_single(z, targets, temperature, group if group.max() + 1 < len(z) else None))


def resampled(rows: Rows, *, resamples: int = 2000, seed: int = 0) -> dict[str, Floats]:
    """Every metric of rows whose groups were drawn with replacement [resamples]; equal seeds give equal draws."""
    by_name: dict[str, list[float]] = {}
    for block in draws(rows.groups, resamples=resamples, seed=seed):
        for drawn in block:
            times = np.bincount(drawn, minlength=rows.groups).astype(float)
            for name, value in rows.figures(times).items():
                by_name.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in by_name.items()}


def reliability(confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS) -> list[dict[str, Any]]:
    """What a reliability diagram shows, for each bin of equal width that has rows in it.

    confidence [N] in [0, 1] of what was given; right [N]: whether it is. Gives {low, high, rows, confidence,
    accuracy, interval}: the edges, the means over the bin's rows, Wilson's interval of the accuracy.
    """
    sure, good = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    place, table = _equal_width(sure, bins), []
    for i in np.unique(place):
        inside = place == i
        table.append(
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "rows": int(inside.sum()),
                "confidence": float(sure[inside].mean()),
                "accuracy": float(good[inside].mean()),
                "interval": list(wilson(good[inside].sum(), int(inside.sum()))),
            }
        )
    return table


# ---- statistics of weighted rows ---------------------------------------------------------------------------


def _single(z: Floats, targets: NDArray[Any], temperature: ArrayLike, group: Ints | None) -> tuple[Ints, Statistic]:
    """One label a row: its confusion [true, given] and its figures."""
    classes = z.shape[1]
    logs = log_probabilities(scaled(z, temperature))
    shares = np.eye(classes)[targets.astype(int)] if targets.ndim == 1 else targets.astype(float)
    truth, predicted = shares.argmax(1), logs.argmax(1)
    p = np.exp(logs)
    right, sure = (predicted == truth).astype(float), p.max(1)
    nll, brier = -(shares * logs).sum(1), ((p - shares) ** 2).sum(1)
    cell, gap = truth * classes + predicted, right - sure
    even, adaptive = _equal_width(sure, BINS), _equal_mass(sure, BINS)
    whole = None if group is None else np.bincount(group, right) == np.bincount(group)

    def statistic(w: Floats, by_group: Floats) -> dict[str, float]:
        total = w.sum()
        table = np.bincount(cell, w, classes**2).reshape(classes, classes)
        figures = {
            "accuracy": w @ right / total,
            "macro_f1": _macro(*_counts(table)),
            "nll": w @ nll / total,
            "brier": w @ brier / total,
            "ece": np.abs(np.bincount(even, w * gap)).sum() / total,
            "adaptive_ece": np.abs(np.bincount(adaptive, w * gap)).sum() / total,
        }
        if whole is not None and classes == 2:
            figures |= {"f1a": _f1(*_counts(table))[1], "em": by_group @ whole / by_group.sum()}
        return figures

    table = np.bincount(cell, minlength=classes**2).reshape(classes, classes)
    return table, statistic


def _several(z: Floats, targets: NDArray[Any], temperature: ArrayLike) -> tuple[Ints, Statistic]:
    """Any number of labels a row: [[neither, said], [true, both]] of each label, and figures."""
    z, shares = scaled(z, temperature), targets.astype(float)
    p = probabilities(z, multi_label=True)
    truth, predicted = ((values >= MULTI_LABEL_CUT).astype(float) for values in (shares, p))
    hits, wrong, missed = predicted * truth, predicted * (1 - truth), (1 - predicted) * truth
    exact = (predicted == truth).all(1).astype(float)
    nll = (np.logaddexp(0, z) - shares * z).mean(1)
    brier = ((p - shares) ** 2).mean(1)

    def statistic(w: Floats, _: Floats) -> dict[str, float]:
        total, counts = w.sum(), (w @ hits, w @ wrong, w @ missed)
        return {
            "exact_match": w @ exact / total,
            "micro_f1": float(_f1(*(np.array([count.sum()]) for count in counts))[0]),
            "macro_f1": _macro(*counts),
            "nll": w @ nll / total,
            "brier": w @ brier / total,
        }

    cells = ((1 - predicted) * (1 - truth), wrong, missed, hits)
    table = np.stack([cell.sum(0) for cell in cells], 1).astype(int).reshape(-1, 2, 2)
    return table, statistic


def _counts(table: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """True positives, false positives and false negatives [K] of each class of a confusion [true, given]."""
    hits = np.diag(table)
    return hits, table.sum(0) - hits, table.sum(1) - hits


def _f1(hits: NDArray[Any], wrong: NDArray[Any], missed: NDArray[Any]) -> Floats:
    """2 TP / (2 TP + FP + FN) of each class [K]; 0 where there is nothing of it."""
    return 2 * hits / np.maximum(2 * hits + wrong + missed, 1e-12)


def _macro(hits: NDArray[Any], wrong: NDArray[Any], missed: NDArray[Any]) -> float:
    """Mean F1 of the classes that any row has or is given."""
    present = hits + wrong + missed > 0
    return float(_f1(hits, wrong, missed)[present].mean()) if present.any() else 0.0


# ---- rows ----------------------------------------------------------------------------------------------------


def _classes(table: Ints, names: list[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and rows of each class, by name."""
    if table.ndim == 3:
        hits, wrong, missed = table[:, 1, 1], table[:, 0, 1], table[:, 1, 0]
    else:
        hits, wrong, missed = _counts(table)
    f1 = _f1(hits, wrong, missed)
    return {
        name: {
            "precision": float(hits[i] / max(1, hits[i] + wrong[i])),
            "recall": float(hits[i] / max(1, hits[i] + missed[i])),
            "f1": float(f1[i]),
            "rows": int(hits[i] + missed[i]),
        }
        for i, name in enumerate(names)
    }


def _equal_width(confidence: Floats, bins: int) -> Ints:
    """Bin of each row: bin i holds i / bins < confidence <= (i + 1) / bins, the first one 0 too."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _equal_mass(confidence: Floats, bins: int) -> Ints:
    """Bin of each row, every bin with as many rows as any other; equal confidences may be parted."""
    place = np.empty(len(confidence), dtype=int)
    place[confidence.argsort(kind="stable")] = np.arange(len(confidence)) * bins // max(1, len(confidence))
    return place


def _is_multi_label(labels: NDArray[Any]) -> bool:
    """Zeros and ones, and not exactly one of them in every row: shares of classes would sum to 1."""
    return labels.ndim == 2 and bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) != 1).any())
