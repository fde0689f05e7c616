"""The demonstration's picture; needs the `plot` extra."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from dual_head.demo.measure import Point, frontier_point
from dual_head.stats import bootstrap_mean


def demo_picture(
    points: Sequence[Point],
    traces: Sequence[tuple[str, list[tuple[str, float]]]],
    mixtures: Sequence[Point],
    file: Path,
) -> None:
    """Draw exact reward against divergence over alpha, the frontier of two objectives, and the gate over replies."""
    rows: Any = [["frontier", "objectives", f"gate {i}"] for i in range(len(traces))]
    figure = Figure(figsize=(16, 5.6), layout="constrained")
    axes = figure.subplot_mosaic(rows, width_ratios=(1, 1, 1.25))
    _frontier(axes["frontier"], points)
    _objectives(axes["objectives"], mixtures)
    for i, (prompt, tokens) in enumerate(traces):
        _gate_bars(axes[f"gate {i}"], prompt, tokens)
    figure.savefig(file, dpi=120)


def _frontier(axis, points: Sequence[Point]) -> None:
    means = [statistics.fmean(point.rewards()) for point in points]
    intervals = [bootstrap_mean(point.rewards()) for point in points]
    errors = [[abs(mean - bounds[side]) for mean, bounds in zip(means, intervals, strict=True)] for side in (0, 1)]
    divergences = [point.kl() for point in points]
    axis.errorbar(divergences, means, yerr=errors, fmt="o-", capsize=3, color="tab:blue")
    for point, x, y in zip(points, divergences, means, strict=True):
        axis.annotate(rf"$\alpha$ = {point.alpha:g}", (x, y), textcoords="offset points", xytext=(8, -12), fontsize=9)
    axis.set_xlabel("KL(policy || backbone), nats per reply")
    axis.set_ylabel("exact reward, points per reply")
    axis.set_title(f"reward against divergence, {len(points[0].replies)} new requests, 95% intervals", fontsize=10)
    axis.margins(x=0.12)
    axis.grid(alpha=0.3)


def _objectives(axis, points: Sequence[Point]) -> None:
    """One line per strength of the guide for help, over the strengths of the guide against harm."""
    lines: dict[float, list[Point]] = {}
    for point in points:
        assert isinstance(point.alpha, Mapping)
        lines.setdefault(point.alpha["helpful"], []).append(point)
    for (help_, line), color in zip(lines.items(), ("tab:gray", "tab:cyan", "tab:blue"), strict=True):
        xs, ys = zip(*(frontier_point(point) for point in line), strict=True)
        axis.plot(xs, ys, "o-", color=color, label=rf"$\alpha_{{help}}$ = {help_:g}")
        for point, x, y in zip(line, xs, ys, strict=True):
            assert isinstance(point.alpha, Mapping)
            axis.annotate(f"{point.alpha['harmless']:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axis.set_xlabel("help given to harmless requests, points per reply")
    axis.set_ylabel("harm avoided on harmful requests, points per reply")
    axis.set_title(
        rf"two guides mixed while decoding, {len(points[0].replies)} requests; labels: $\alpha_{{harm}}$", fontsize=10
    )
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3)


def _gate_bars(axis, prompt: str, tokens: list[tuple[str, float]]) -> None:
    gates = [gate for _, gate in tokens]
    axis.bar(range(len(tokens)), gates, color=colormaps["coolwarm"](gates))
    axis.set_xticks(range(len(tokens)), [word for word, _ in tokens], rotation=60, ha="right", fontsize=7)
    axis.set_ylim(0, 1)
    axis.set_ylabel("gate")
    axis.set_title(prompt, fontsize=9, loc="left")
