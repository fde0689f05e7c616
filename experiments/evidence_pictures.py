"""The picture of an evidence run: what each method gains, over how far it is from the backbone.

It knows plain values. It loads no model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_head.errors import require

FAR = 10.0  # nats beyond which the axis is logarithmic, from 1 on
TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50)


def draw_trade_off(summary: Mapping[str, Any], file: Path) -> None:
    """Draw the gain of every method over its KL at each strength, and the best of the backbone's replies, as PNG."""
    matplotlib: Any = require("matplotlib", "plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, panel = pyplot.subplots(figsize=(8.4, 4.2))
    for name, method in summary["main"].items():
        at = list(method["at"].values())
        gains = [0.0, *(point["gain"] for point in at)]
        low = [0.0, *(point["gain"] - point["interval"][0] for point in at)]
        high = [0.0, *(point["interval"][1] - point["gain"] for point in at)]
        divergences = [0.0, *(point["kl"] for point in at)]
        panel.errorbar(divergences, gains, yerr=[low, high], marker="o", markersize=4, capsize=2, label=name)
    best = summary["trade_off"]["best_of"]
    if best:
        divergences = [one["divergence"] for one in best.values()]
        panel.plot(divergences, [one["gain"] for one in best.values()], "k^", label="best of n, chosen by the judge")
        for n, one in best.items():
            place = (one["divergence"], one["gain"])
            panel.annotate(f"n = {n}", place, textcoords="offset points", xytext=(-7, -2), ha="right", fontsize=7)
    if max(point["kl"] for method in summary["main"].values() for point in method["at"].values()) > FAR:
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        panel.set_xlim(left=-0.05)
    panel.axhline(0.0, color="grey", linewidth=0.8)
    panel.set(xlabel="KL from the backbone, nats a reply", ylabel="gain over the backbone",
              title=f"{summary['about']['world']}, each method at its strengths")  # fmt: skip
    panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    chart.tight_layout()
    chart.savefig(file, dpi=120)
    pyplot.close(chart)
