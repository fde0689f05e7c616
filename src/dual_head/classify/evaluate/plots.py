"""Pictures of what a classifier gives: which classes it confuses, and whether it is as sure as it is right.

Needs the `plot` extra. It draws, and computes nothing but shares.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: a notebook's backend is its own business

WRITTEN = 12  # classes up to which every cell has its count in it
NAMED = 40  # and up to which every class has its name, and a picture grows
DRAWN = 1000**2  # cells that are drawn at most
COLUMNS = 3  # panels in a row
OUTCOMES = ("neither", "given only", "true only", "both")


def confusion_picture(reports: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw each classifier's confusion: share of each true class's rows that are given each class, and counts.

    reports: by name of the classifier, as `metrics.report` makes them. Where a row may have several labels: of each
    label, how many rows it is true of, given to, both or neither. Of very many classes there is a note only.
    """
    first = next(iter(reports.values()))
    names = list(first["classes"])
    several = isinstance(first["confusion"][0][0], Sequence)  # not by way of an array, which may be large
    across = list(OUTCOMES) if several else names
    image: Any = None
    wide, high = min(len(across), NAMED), min(len(names), NAMED)
    figure, axes = _panels(len(reports), width=max(4.0, 0.45 * wide), height=max(3.6, 0.4 * high))
    for axis, (title, report) in zip(axes, reports.items(), strict=False):
        axis.set_title(f"{title}, {report['rows']} rows", fontsize=10)
        if len(names) * len(across) > DRAWN:
            axis.text(0.5, 0.5, f"{len(names):,} classes are too many to draw", ha="center", va="center", fontsize=9)
            axis.set_axis_off()
            continue
        counts = np.asarray(report["confusion"]).reshape(len(names), -1)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        if len(names) <= WRITTEN:
            for (i, j), count in np.ndenumerate(counts):
                shade = "white" if shares[i, j] > 0.6 else "black"
                axis.text(j, i, f"{count}\n{shares[i, j]:.0%}", ha="center", va="center", color=shade, fontsize=8)
        if len(names) <= NAMED:
            axis.set_xticks(range(len(across)), across, rotation=30 if max(map(len, across)) > 6 else 0, fontsize=8)
            axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xlabel("" if several else "given", fontsize=9)
        axis.set_ylabel("label" if several else "true", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=list(axes), shrink=0.8, label="share")
    figure.savefig(file, dpi=120)


def reliability_picture(bins: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Draw accuracy over confidence for each classifier, on the diagonal where it is as sure as it is right.

    bins: by name of the classifier, as `metrics.reliability` makes them; below, what share of the rows is in each.
    """
    figure, axes = _panels(len(bins), width=4.0, height=4.4)
    for axis, (title, points) in zip(axes, bins.items(), strict=False):
        rows = sum(point["rows"] for point in points)
        middles = [(point["low"] + point["high"]) / 2 for point in points]
        widths = [point["high"] - point["low"] for point in points]
        axis.bar(middles, [point["rows"] / rows for point in points], widths, color="tab:gray", alpha=0.35)
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
        sure, good = [[point[name] for point in points] for name in ("confidence", "accuracy")]
        below = [max(0, point["accuracy"] - point["interval"][0]) for point in points]
        above = [max(0, point["interval"][1] - point["accuracy"]) for point in points]
        axis.errorbar(sure, good, yerr=[below, above], fmt="o-", markersize=4, linewidth=1.2, capsize=2, elinewidth=0.7)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xlabel("confidence", fontsize=9)
        axis.set_ylabel("accuracy (line), share of rows (bars)", fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, Any]:
    across = min(count, COLUMNS)
    down = -(-count // across)
    figure = Figure(figsize=(width * across + 1, height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]
