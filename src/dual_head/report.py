"""What a training run has to say for itself: a table on the screen, report.json, curves.png."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from dual_head.data import Drops
from dual_head.intervals import bootstrap_mean, wilson
from dual_head.methods import Method

SHARES = ("accuracy", "accuracy_over_base")


def summarise(
    trainer: Trainer,
    per_pair: dict[str, torch.Tensor],
    method: Method,
    drops: dict[str, Drops],
    seconds: float,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Collect what a run was and gave, as plain values for report.json."""
    held_out = {
        name: {"mean": values.mean().item(), "interval": list(_interval(name, values)), "pairs": len(values)}
        for name, values in per_pair.items()
        if not name.startswith("gate_hist")
    }
    return {
        "method": method.as_dict(),
        "data": {
            stage: {"rows": d.rows, "kept": d.kept, "dropped": dict(d.reasons), "notes": dict(d.notes)}
            for stage, d in drops.items()
        },
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 2),
        "held_out": held_out,
        "metrics": metrics,
        "log": trainer.state.log_history,
    }


def _interval(name: str, values: torch.Tensor) -> tuple[float, float]:
    if name in SHARES:
        return wilson(values.sum().item(), len(values))
    return bootstrap_mean(values.tolist(), resamples=500)


def print_report(report: dict[str, Any], output: Path, console: Console) -> None:
    if report["held_out"]:
        table = Table(title=f"held-out pairs after {report['steps']} steps, {report['seconds']:.0f} s")
        for column in ("", "mean", "95% interval"):
            table.add_column(column, justify="left" if not column else "right")
        for name, value in report["held_out"].items():
            low, high = value["interval"]
            table.add_row(name, f"{value['mean']:.4f}", f"{low:.4f} to {high:.4f}")
        console.print(table)
    console.print(f"Guides written to {output}. Try: dual-head generate {output} --prompt '...' --alpha 1")


def draw(report: dict[str, Any], folder: Path) -> None:
    """Draw the logged curves into curves.png, where matplotlib is installed."""
    try:
        from dual_head.plots import training_curves
    except ImportError:
        return  # a picture is welcome, not needed; `pip install 'dual-head[plot]'` brings it
    training_curves(report["log"], folder / "curves.png")
