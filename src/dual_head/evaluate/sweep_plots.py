"""The picture of a sweep over strengths; needs the `plot` extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: a notebook's backend is its own business

# Figure of a sweep to its title; those that share a panel are named in its legend.
SWEEP_PANELS = (
    ("KL from the backbone, nats per reply", {"kl": "kl"}),
    ("KL from the backbone, nats per token", {"kl_per_token": "kl per token"}),
    ("probability moved per token", {"moved": "moved"}),
    ("length, tokens", {"tokens": "tokens"}),
    ("distinct n-grams", {"distinct_1": "n = 1", "distinct_2": "n = 2", "distinct_3": "n = 3"}),
    ("diversity", {"diversity": "diversity"}),
)
COLUMNS = 3


def sweep_picture(points: Sequence[dict[str, Any]], file: Path, *, axis: str = "alpha") -> None:
    """Draw each figure of `sweep.summarise` over alpha with its interval, and every reward against the divergence."""
    rewards = list(points[0]["rewards"])
    panels = len(SWEEP_PANELS) + 2 * len(rewards)
    rows = -(-panels // COLUMNS)
    figure = Figure(figsize=(11, 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, COLUMNS).flat
    for unused in axes[panels:]:
        unused.set_axis_off()
    alphas = [point["alpha"] for point in points]
    for panel, (title, lines) in zip(axes, SWEEP_PANELS, strict=False):
        for name, label in lines.items():
            interval_line(panel, alphas, [point["metrics"][name] for point in points], label)
        if len(lines) > 1:
            panel.legend(fontsize=7)
        label_panel(panel, title, axis)
    for i, name in enumerate(rewards):
        over_alpha, against = axes[len(SWEEP_PANELS) + 2 * i], axes[len(SWEEP_PANELS) + 2 * i + 1]
        values = [point["rewards"][name] for point in points]
        interval_line(over_alpha, alphas, values, name)
        label_panel(over_alpha, f"reward {name}", axis)
        _frontier(against, alphas, [point["metrics"]["kl"] for point in points], values)
        label_panel(against, f"reward {name} against KL", "KL from the backbone, nats per reply")
    title = f"{points[0]['prompts']} prompts, {points[0]['replies']} replies per strength, 95% intervals"
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=120)


def interval_line(axis, x: list[float], values: list[dict[str, Any]], label: str) -> None:
    """Draw means over x with their intervals, {"mean", "interval"} each."""
    means = [value["mean"] for value in values]
    axis.errorbar(x, means, yerr=_errors(values), fmt="o-", markersize=3, linewidth=1.2, capsize=2, label=label)


def _frontier(axis, alphas: list[float], divergences: list[dict[str, Any]], values: list[dict[str, Any]]) -> None:
    at = [(kl["mean"], value["mean"]) for kl, value in zip(divergences, values, strict=True)]
    bars = {"xerr": _errors(divergences), "yerr": _errors(values)}
    axis.errorbar(*zip(*at, strict=True), **bars, fmt="o-", markersize=3, linewidth=1.2, capsize=2, elinewidth=0.7)
    for alpha, point in zip(alphas, at, strict=True):
        axis.annotate(rf"$\alpha$ = {alpha:g}", point, textcoords="offset points", xytext=(5, -9), fontsize=7)
    axis.margins(x=0.15, y=0.12)


def _errors(values: list[dict[str, Any]]) -> list[list[float]]:
    """How far the interval reaches below and above each mean; rounding must not make it negative."""
    below = [max(0.0, value["mean"] - value["interval"][0]) for value in values]
    return [below, [max(0.0, value["interval"][1] - value["mean"]) for value in values]]


def label_panel(axis, title: str, x: str) -> None:
    """Write a panel's title and what is on its x axis."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
