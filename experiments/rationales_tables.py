"""Figures, tables and the picture of the rationale experiment, from what its finished runs said.

It knows plain values. It trains nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from evidence_tables import markdown
from rationales_data import SYNTHETIC

from dual_head.stats import crossed

SAID = {
    "pooled": "pooled only, no reasoning loss",
    "none": "DHRD",
    "continuation": "DHRD, reasoning loss without the input",
    "input_lm": "next-token loss on the input only",
    "label_only": "label written, no rationale",
    "shuffled": "another row's rationale",
    "shuffled_in_class": "another's of the same label",
    "permuted": "its words in random order",
}


def summary(experiment: Any) -> dict[str, Any]:
    """Figures of every data set. Errors: a run that is not there."""
    runs = experiment.main()
    return {
        "floors": experiment.floors(),
        "titles": {name: own.title for name, own in experiment.data.items()},
        "search": {
            name: {system: experiment.tried(name, system) for system in ("pooled", "none")} for name in experiment.data
        },
        "systems": {name: _systems(experiment, [run for run in runs if run.data == name]) for name in experiment.data},
        "curve": _curve(experiment, [run for run in runs if run.data == SYNTHETIC]),
    }


def _systems(experiment: Any, runs: Sequence[Any]) -> dict[str, Any]:
    """Accuracy of each system, and its difference from the plain one and from DHRD, row by row and seed by seed."""
    systems = dict.fromkeys(run.system for run in runs)
    said = {system: [experiment.read(run) for run in runs if run.system == system] for system in systems}
    right = {system: right_table(own) for system, own in said.items()}
    found = {}
    for system, table in right.items():
        mean, interval = crossed(table)
        found[system] = {
            "accuracy": mean,
            "interval": interval,
            "by_seed": table.mean(1).tolist(),
            "rate": said[system][0]["rate"],
            "processor_seconds": fmean(own["processor_seconds"] for own in said[system]),
            "over": {other: _difference(table, right[other]) for other in ("pooled", "none") if other in right},
        }
    return found


def right_table(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Whether each row was classified rightly, [seeds, rows]."""
    return np.array([[int(one) for one in run["right"]] for run in runs], dtype=float)


def _difference(own: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    mean, interval = crossed(own - other)
    return {"mean": mean, "interval": interval}


def _curve(experiment: Any, runs: Sequence[Any]) -> dict[str, Any]:
    """Accuracy at each evaluation, of every seed, by system."""
    found: dict[str, Any] = {}
    for run in runs:
        points = experiment.read(run)["curve"]
        own = found.setdefault(run.system, {"steps": [step for step, _ in points], "by_seed": []})
        own["by_seed"].append([accuracy for _, accuracy in points])
    return found


# ---- tables ---------------------------------------------------------------------------------------------


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its name."""
    found = {
        f"rationales-{name}": f"{_before(figures, name)}\n\n{_accuracies(own)}"
        for name, own in figures["systems"].items()
    }
    if figures["curve"]:
        found["rationales-curve"] = _curve_table(figures["curve"])
    return found


def _percent(value: float, interval: Sequence[float], form: str = ".1f") -> str:
    return f"{100 * value:{form}} ({100 * interval[0]:{form}} to {100 * interval[1]:{form}})"


def _before(figures: Mapping[str, Any], name: str) -> str:
    """What is known without any of the systems, and what the search found."""
    own = figures["floors"][name]
    words = {part: _percent(own[part]["value"], own[part]["interval"]) for part in ("majority", "input", "rationale")}
    tried = "; ".join(
        f"{SAID[system]} " + ", ".join(f"{100 * value:.1f} at {rate:.2g}" for rate, value in rates.items())
        for system, rates in figures["search"][name].items()
        if rates
    )
    return (
        f"{figures['titles'][name]}, {own['train_rows']:,} training rows. On all {own['test_rows']:,} test rows the "
        f"most frequent label is right on {words['majority']}%, TF-IDF with logistic regression of the input on "
        f"{words['input']}%, of the rationale alone on {words['rationale']}%."
        + (f" Tried on rows kept back: {tried}." if tried else "")
    )


def _accuracies(systems: Mapping[str, Any]) -> str:
    rows = []
    for system, own in systems.items():
        over = {name: _percent(one["mean"], one["interval"], "+.1f") for name, one in own["over"].items()}
        rows.append(
            [
                SAID[system],
                _percent(own["accuracy"], own["interval"]),
                " / ".join(f"{100 * one:.1f}" for one in own["by_seed"]),
                "" if system == "pooled" else over.get("pooled", ""),
                "" if system == "none" else over.get("none", ""),
                f"{own['processor_seconds']:.0f}",
            ]
        )
    columns = ["system", "accuracy (95%)", "by seed", "over pooled (95%)", "over DHRD (95%)", "processor s"]
    return markdown(columns, rows)


def _curve_table(curve: Mapping[str, Any]) -> str:
    steps = next(iter(curve.values()))["steps"]
    rows = [
        [SAID[system], *(f"{100 * value:.1f}" for value in np.mean(own["by_seed"], axis=0))]
        for system, own in curve.items()
    ]
    return markdown(["accuracy after steps", *map(str, steps)], rows)


def curve_picture(curve: Mapping[str, Any], file: Path) -> None:
    """Draw accuracy over steps: the mean of the seeds, and from the worst to the best of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for system, own in curve.items():
        seeds = 100 * np.array(own["by_seed"])
        (line,) = axis.plot(own["steps"], seeds.mean(0), marker="o", markersize=3, linewidth=1.4, label=SAID[system])
        axis.fill_between(own["steps"], seeds.min(0), seeds.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set_xlabel("steps")
    axis.set_ylabel("accuracy on rows not seen, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=120)
