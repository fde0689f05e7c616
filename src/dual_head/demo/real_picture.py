"""The picture of guides on a real chat model; needs the `plot` extra."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from dual_head.demo.answers import Answer
from dual_head.demo.findings import ALPHAS, Findings, kl, mean
from dual_head.replies import RULES

SHOWN = 2  # the question whose replies are written out
WIDTH, LINES = 52, 4  # of a reply, in characters and lines


def real_picture(findings: Findings, file: Path) -> None:
    """Draw what each rule counts over alpha, what is left of two at once, and one question's replies in words."""
    names = findings.names
    rows: Any = [[f"rule {name}" for name in names] + ["mix"], [f"text {name}" for name in names] + ["text mix"]]
    figure = Figure(figsize=(5.4 * (len(names) + 1), 10), layout="constrained")
    axes = figure.subplot_mosaic(rows, height_ratios=(1, 1.25))
    for name in names:
        _over_alpha(axes[f"rule {name}"], name, findings.alone[name])
        groups = {rf"$\alpha$ = {alpha:g}": findings.alone[name][alpha] for alpha in ALPHAS}
        _words(axes[f"text {name}"], name, groups, [name])
    _mix(axes["mix"], findings)
    _words(axes["text mix"], "mixed", {"both at 1": findings.mixed} if findings.mixed else {}, names)
    figure.savefig(file, dpi=110)


def _over_alpha(axis, name: str, by_alpha: dict[float, list[Answer]]) -> None:
    """One thin line per question, the mean in bold, with the divergence beside each point."""
    questions = [reply.question for reply in by_alpha[0.0]]
    for question in questions:
        scores = [next(r for r in by_alpha[alpha] if r.question == question).score(name) for alpha in ALPHAS]
        axis.plot(ALPHAS, scores, color="tab:gray", alpha=0.35, linewidth=1)
    means = [mean(by_alpha[alpha], name) for alpha in ALPHAS]
    axis.plot(ALPHAS, means, "o-", color="tab:blue", linewidth=2.5)
    for alpha, y in zip(ALPHAS, means, strict=True):
        text = f"{y:.2f}\nKL {kl(by_alpha[alpha]):.0f}"
        axis.annotate(text, (alpha, y), textcoords="offset points", xytext=(6, 6), fontsize=9)
    axis.set_xticks(ALPHAS)
    axis.set_xlabel(r"$\alpha$")
    axis.set_ylabel(RULES[name].unit)
    axis.set_title(f"{name}: {RULES[name].about}, {len(questions)} questions", fontsize=10)
    axis.margins(0.15)
    axis.grid(alpha=0.3)


def _mix(axis, findings: Findings) -> None:
    """Both rules at once: without a guide, with each at 1, and with both."""
    if len(findings.names) < 2:
        axis.axis("off")
        return
    one, two = findings.names
    points = {"backbone": findings.alone[one][0.0], f"{one} 1": findings.alone[one][1.0]}
    points |= {f"{two} 1": findings.alone[two][1.0], "both at 1": findings.mixed}
    for (label, replies), color in zip(points.items(), colormaps["viridis"]([0, 0.35, 0.65, 0.9]), strict=True):
        x, y = mean(replies, one), mean(replies, two)
        axis.plot([x], [y], "o", color=color, markersize=10)
        text = f"{label}\nKL {kl(replies):.0f}"
        axis.annotate(text, (x, y), textcoords="offset points", xytext=(8, 4), fontsize=9)
    axis.set_xlabel(f"{one}: {RULES[one].unit}")
    axis.set_ylabel(f"{two}: {RULES[two].unit}")
    axis.set_title("two guides mixed while decoding", fontsize=10)
    axis.margins(0.3)
    axis.grid(alpha=0.3)


def _words(axis, title: str, groups: dict[str, list[Answer]], rules: Sequence[str]) -> None:
    """One question's reply in each group, with what the rules count."""
    axis.axis("off")
    if not groups:
        return
    blocks = []
    for label, replies in groups.items():
        reply = replies[SHOWN]
        lines = textwrap.wrap(" ".join(reply.text.split()), WIDTH) or ["(nothing)"]
        lines = lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1][: WIDTH - 4]} ..."]
        counts = ", ".join(f"{rule} {reply.score(rule):.3g}" for rule in rules)
        blocks.append("\n".join([f"{label}   [{counts}; KL {reply.kl:.0f}]", *lines]))
    text = f"{title}: {next(iter(groups.values()))[SHOWN].question}\n\n" + "\n\n".join(blocks)
    axis.text(0, 1, text.replace("$", r"\$").replace(r"\$\alpha\$", r"$\alpha$"), va="top", fontsize=9, parse_math=True)
