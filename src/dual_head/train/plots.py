"""The picture of a training run; needs the `plot` extra."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: a notebook's backend is its own business

CURVES = ("loss", "preference", "kto", "accuracy", "gate", "kl", "next_token")


def training_curves(log: list[dict[str, Any]], file: Path) -> None:
    """Draw each logged term over steps, training as a line and held-out pairs as points."""
    names = [name for name in CURVES if any(name in row or f"eval_{name}" in row for row in log)]
    if not names:
        return
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        train = [(row["step"], row[name]) for row in log if name in row]
        held_out = [(row["step"], row[f"eval_{name}"]) for row in log if f"eval_{name}" in row]
        if train:
            axis.plot(*zip(*train, strict=True), color="tab:blue", linewidth=1.2, label="training")
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o", color="tab:orange", markersize=4, label="held out")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
