"""The report of a training run: a table on the screen, report.json, curves.png."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from dual_head.data import RowReport
from dual_head.losses import name_of
from dual_head.methods import Method
from dual_head.stats import bootstrap_mean, wilson

SHARES = ("accuracy", "accuracy_over_base")
MEASURED = ("preference", "kl")  # reported for every method: what a guide learns, and what that costs
NEAR = 1e-4  # nats a token from the backbone, of which a reply has too few to be another
CLOSED = 0.01  # mean of a gate that lets a hundredth of a guide through
FEW = 20  # below, an interval of a share is wider than any difference between methods


def summarise(
    trainer: Trainer,
    per_pair: dict[str, torch.Tensor],
    method: Method,
    drops: dict[str, RowReport],
    seconds: float,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Collect what a run was and gave, as plain values for report.json.

    held_out: what the method trains or measures, a mean of None where a pair's value is not finite.
    """
    untrained = {name_of(x) for x in method.objectives if not x.weight and name_of(x) not in MEASURED}
    held_out = {
        name: _summary(name, values)
        for name, values in per_pair.items()
        if not name.startswith("gate_hist") and name not in untrained
    }
    return {
        "method": method.as_dict(),
        "data": {
            stage: {"rows": x.rows, "kept": x.kept, "dropped": dict(x.reasons), "notes": dict(x.notes)}
            for stage, x in drops.items()
        },
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 2),
        "held_out": held_out,
        "metrics": metrics,
        "log": trainer.state.log_history,
    }


def _summary(name: str, values: torch.Tensor) -> dict[str, Any]:
    if not values.isfinite().all():
        return {"mean": None, "interval": None, "pairs": len(values), "finite": int(values.isfinite().sum())}
    return {"mean": values.mean().item(), "interval": list(_interval(name, values)), "pairs": len(values)}


def _interval(name: str, values: torch.Tensor) -> tuple[float, float]:
    if name in SHARES:
        return wilson(values.sum().item(), len(values))
    return bootstrap_mean(values.tolist(), resamples=500)


def print_report(report: dict[str, Any], output: Path, console: Console, noun: str = "pairs") -> None:
    """Print the table of what is held out, noun: "pairs" or "replies", and where the guides are."""
    if report["held_out"]:
        after = "one pass" if "fit" in report else f"{report['steps']} steps"
        table = Table(title=f"held-out {noun} after {after}, {report['seconds']:.0f} s")
        for column in ("", "mean", "95% interval"):
            table.add_column(column, justify="left" if not column else "right")
        for name, value in report["held_out"].items():
            table.add_row(name, *_cells(value))
        console.print(table)
        if note := too_few(next(iter(report["held_out"].values()))["pairs"], noun):
            console.print(note)
        if note := too_near(report["held_out"]):
            console.print(note)
    console.print(
        f"Guides written to {output}. Try: dual-head generate {output} --prompt '...' --alpha 1", soft_wrap=True
    )


def _cells(value: dict[str, Any]) -> tuple[str, str]:
    if value["mean"] is None:
        return "-", f"finite for {value['finite']} of {value['pairs']} pairs"
    low, high = value["interval"]
    return f"{value['mean']:.4f}", f"{low:.4f} to {high:.4f}"


def too_few(count: int, what: str) -> str:
    """A warning where so few pairs or rows are held out that their averages mean little; else an empty text."""
    return f"Only {count} held-out {what}: averages under {FEW} mean little. Hold out more." if count < FEW else ""


def too_near(held_out: dict[str, Any]) -> str:
    """A warning where the guide hardly changes the backbone at alpha = 1, and whether its gate is why; else "".

    held_out: {measure: {"mean", ...}} of `summarise`.
    """
    divergence, gate = (held_out.get(name, {}).get("mean") for name in ("kl", "gate"))
    if divergence is None or divergence >= NEAR:
        return ""
    near = f"At alpha = 1 the policy is {divergence:.1e} nats a token from the backbone: it says nearly the same."
    if gate is not None and gate < CLOSED:
        return f"{near} The gate is closed (mean {gate:.4f}): lower --learning_rate, or use --gate constant."
    return f"{near} Train more steps, or raise --learning_rate."


def draw(report: dict[str, Any], folder: Path) -> None:
    """Draw the logged curves into curves.png, where matplotlib is installed."""
    try:
        from dual_head.train.plots import training_curves
    except ImportError:
        return  # the picture is optional: `pip install 'dual-head[plot]'`
    training_curves(report["log"], folder / "curves.png")
