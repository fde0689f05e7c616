"""Numbers of a report as text, for the page, for markdown and for the screen: digits, and sentences about them."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

NOTHING = "\N{EN DASH}"


def number(value: Any, digits: int = 3) -> str:
    """Show a number with at least three significant digits, whole above 1000; other values as they are."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        size = math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{min(6, max(0, digits - 1 - size))}f}"
    return f"{value:.{digits - 1}e}"


def count(value: int | None) -> str:
    """Show a count with commas between thousands."""
    return NOTHING if value is None else f"{value:,}"


def percent(rate: float | None) -> str:
    """Show a share in [0, 1] in percent, one digit after the point."""
    return NOTHING if rate is None else f"{100 * rate:.1f}"


def titled(metric: dict[str, Any]) -> str:
    """Name of a metric with its unit and an arrow to its better side."""
    unit = f", {metric['unit']}" if metric.get("unit") else ""
    return f"{metric['name']}{unit} {arrow(metric)}".rstrip()


def arrow(metric: dict[str, Any]) -> str:
    """Arrow to the better side of a metric, "" where neither is."""
    return {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}.get(metric.get("better") or "", "")


def decimals(values: Sequence[float]) -> int:
    """Digits after the point that all of a column has: three significant ones in its largest value."""
    largest = max((abs(value) for value in values), default=0.0)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2


def strength(alpha: Any) -> str:
    """Show one strength, or that of each guide."""
    if isinstance(alpha, dict):
        return ", ".join(f"{name} {number(value)}" for name, value in alpha.items())
    return f"{alpha:g}" if isinstance(alpha, (int, float)) else NOTHING if alpha is None else str(alpha)


def subtitle(report: dict[str, Any]) -> str:
    """Say in one line what was asked, of whom, who judged and when."""
    benchmark, judge = report.get("benchmark") or {}, report.get("judge") or {}
    parts = [f"{count(benchmark['questions'])} questions"] if benchmark.get("questions") is not None else []
    parts[:0] = [benchmark["name"]] if benchmark.get("name") else []
    systems = report.get("systems") or []
    parts += [f"{len(systems)} system{'s' * (len(systems) > 1)}"] if systems else []
    parts += [f"judge: {judge['name']}"] if judge.get("name") else []
    parts += [str(report["date"])] if report.get("date") else []
    return " \N{MIDDLE DOT} ".join(parts)


def setting(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of all that a reader needs to measure the same again."""
    benchmark, judge = report.get("benchmark") or {}, report.get("judge") or {}
    dropped = benchmark.get("dropped") or {}
    lines = [
        ("command", report.get("command")),
        ("machine", report.get("machine")),
        ("versions", _listed(report.get("versions"))),
        ("questions", benchmark.get("source")),
        ("questions left out", _listed(dropped) if dropped else "none" if "dropped" in benchmark else None),
        ("decoding", _listed(report.get("decoding"))),
        ("judge", judge.get("note")),
        ("judge used", _listed(judge.get("used"))),
    ]
    return [(name, str(value)) for name, value in lines if value]


def headlines(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence on each pair, or on all together where they are many."""
    if len(pairs) > 4:
        clear = [pair for pair in pairs if side(pair.get("interval"))]
        wins = Counter(pair["a"] if side(pair["interval"]) > 0 else pair["b"] for pair in clear)
        winners = "".join(f"; {name} is preferred in {times} of them" for name, times in wins.most_common(3))
        return [f"Of {len(pairs)} pairs, {len(clear)} have an interval that leaves out 50%{winners}."]
    return [_headline(pair) for pair in pairs]


def side(interval: Sequence[float] | None, middle: float = 0.5) -> int:
    """1 for an interval above the middle, -1 below it, 0 where it holds it or there is none."""
    return 0 if not interval else (interval[0] > middle) - (interval[1] < middle)


def _headline(pair: dict[str, Any]) -> str:
    judged = pair["wins"] + pair["ties"] + pair["losses"]
    interval = pair.get("interval")
    span = f" (95% interval {percent(interval[0])} to {percent(interval[1])})" if interval else ""
    verdict = "" if side(interval) else ": no clear difference"
    return f"{pair['a']} wins {percent(pair['rate'])}% of {count(judged)} comparisons with {pair['b']}{span}{verdict}."


def _listed(values: dict[str, Any] | None) -> str:
    """Name every value; options keep the digits that they were given."""
    texts = {
        name: f"{value:g}" if isinstance(value, float) else number(value) for name, value in (values or {}).items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())
