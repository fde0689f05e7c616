"""Where the marks of a page's pictures stand, in the units of each picture's box."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from dual_head.evaluate.report.numbers import arrow, decimals, side

FOREST, BAR, BAR_MARGIN = 250, 96, 5  # widths of a pair's line, of a metric's bar; room for the marks at its ends
SCATTER, SCATTER_MARGIN = (640, 380), (64, 16, 48, 16)  # width, height; left, top, bottom, right
LENGTHS = ("length", "tokens", "characters", "words")

Place = Callable[[float], float]
Mark = dict[str, Any]  # mean, interval and n of one metric, or the marks that show them


def forest_row(pair: dict[str, Any]) -> dict[str, Any]:
    """One pair's line: positions of its marks, the side it is on, and whether length alone may explain that."""
    controlled, interval = pair.get("length_controlled"), pair.get("length_controlled_interval")
    winner = side(pair.get("interval"))
    return {
        **pair,
        "side": winner,
        "at": across(pair["rate"]),
        "from_to": [across(end) for end in pair.get("interval") or []],
        "controlled_at": None if controlled is None else across(controlled),
        "controlled_from_to": [across(end) for end in interval or []],
        "by_length": bool(winner and interval and side(interval) != winner),
    }


def across(share: float, width: float = FOREST, margin: float = 6) -> float:
    """Position of a share in [0, 1] along a line."""
    return round(margin + min(1.0, max(0.0, share)) * (width - 2 * margin), 1)


def matrix(pairs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Rate of each row's system against each column's; step: -5 to 5, how far it is from 50%."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair["a"], pair["b"])))
    if len(names) < 3:
        return None
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in pairs:
        clear = bool(side(pair.get("interval")))
        for row, column, rate in ((pair["a"], pair["b"], pair["rate"]), (pair["b"], pair["a"], 1 - pair["rate"])):
            cells[row, column] = {"rate": rate, "step": round(10 * (rate - 0.5)), "clear": clear}
    return {"names": names, "rows": [(row, [cells.get((row, column)) for column in names]) for row in names]}


def quality(report: dict[str, Any]) -> dict[str, Any] | None:
    """Metrics with the scale that all systems share in each, and the marks of every system on it."""
    section = report.get("quality") or {}
    rows = section.get("rows") or []
    if not rows:
        return None
    columns = []
    for metric in section["metrics"]:
        values = [row["values"].get(metric["name"]) for row in rows]
        columns.append({**metric, "arrow": arrow(metric), "marks": _marks(values, metric.get("better") or "")})
    counts = {mark["n"] for column in columns for mark in column["marks"] if mark and mark["n"] is not None}
    return {
        "columns": columns,
        "systems": [row["system"] for row in rows],
        "n": counts.pop() if len(counts) == 1 else None,
        "width": BAR,
    }


def ratios(report: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Marks of each system's time as a ratio on one scale from its lowest end to its highest, 1 included."""
    rows = [row.get("ratio") for row in report.get("efficiency") or []]
    medians = [ratio for ratio in rows if ratio and ratio.get("median") is not None]
    if not medians:
        return None
    ends = [1.0, *(ratio.get(key) or ratio["median"] for ratio in medians for key in ("low", "median", "high"))]
    place = _scale(min(ends), max(ends), 0, BAR, BAR_MARGIN)
    return [
        {**ratio, "one": place(1.0), "at": place(ratio["median"]), "from_to": _places(ends_of(ratio), place)}
        if ratio and ratio.get("median") is not None
        else {}
        for ratio in rows
    ]


def scatter(report: dict[str, Any]) -> dict[str, Any] | None:
    """Length of replies against the first reward, else the first metric of which more is better, as points."""
    section = report.get("quality") or {}
    metrics, rows = section.get("metrics") or [], section.get("rows") or []
    x = next((m for m in metrics if any(word in m["name"].lower() for word in LENGTHS)), None)
    better = [m for m in metrics if m.get("better") == "higher" and m is not x]
    y = next((m for m in better if "reward" in m["name"].lower()), better[0] if better else None)
    if x is None or y is None:
        return None
    values = [(row["system"], row["values"].get(x["name"]), row["values"].get(y["name"])) for row in rows]
    points = [(name, a, b) for name, a, b in values if a and b and _has_mean(a) and _has_mean(b)]
    if len(points) < 2:
        return None
    (width, height), (left, top, bottom, right) = SCATTER, SCATTER_MARGIN
    x_ends, y_ends = _ends([a for _, a, _ in points]), _ends([b for _, _, b in points])
    place_x = _scale(*x_ends, left, width - right, 12)
    place_y = _scale(*y_ends, height - bottom, top, 12)
    dots = [
        {
            "name": name, "x": place_x(a["mean"]), "y": place_y(b["mean"]),
            "xs": _places(a.get("interval"), place_x), "ys": _places(b.get("interval"), place_y),
        }
        for name, a, b in points
    ]  # fmt: skip
    return {
        "x": x, "y": y, "width": width, "height": height, "left": left, "top": top, "points": _labelled(dots),
        "right": width - right, "bottom": height - bottom,
        "x_ticks": [(place_x(tick), f"{tick:g}") for tick in ticks(*x_ends)],
        "y_ticks": [(place_y(tick), f"{tick:g}") for tick in ticks(*y_ends)],
    }  # fmt: skip


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _marks(values: Sequence[Mark | None], better: str) -> list[Mark | None]:
    present = [value for value in values if value and _has_mean(value)]
    if not present:
        return [None for _ in values]
    ends, means = _ends(present), [value["mean"] for value in present]
    place, digits = _scale(*ends, 0, BAR, BAR_MARGIN), decimals(ends)
    best = {"higher": max(means), "lower": min(means)}.get(better) if len(set(means)) > 1 else None

    def mark(value: Mark) -> Mark:
        interval = value.get("interval")
        return {
            "shown": f"{value['mean']:,.{digits}f}",
            "interval": interval,
            "shown_interval": " to ".join(f"{end:,.{digits}f}" for end in interval or []),
            "n": value.get("n"),
            "at": place(value["mean"]),
            "from_to": _places(interval, place),
            "best": value["mean"] == best,
        }

    return [mark(value) if value and _has_mean(value) else None for value in values]


def _has_mean(value: Mark | None) -> bool:
    return bool(value) and value.get("mean") is not None and math.isfinite(value["mean"])


def _ends(values: Sequence[Mark]) -> tuple[float, float]:
    """Lowest and highest of means and intervals."""
    numbers = [end for value in values for end in (value["mean"], *(value.get("interval") or []))]
    return min(numbers), max(numbers)


def ends_of(ratio: dict[str, Any]) -> list[float] | None:
    """The smallest and the largest of several ratios, where both are known."""
    low, high = ratio.get("low"), ratio.get("high")
    return None if low is None or high is None else [low, high]


def _places(interval: Sequence[float] | None, place: Place) -> list[float]:
    return [place(end) for end in interval] if interval else []


def _scale(low: float, high: float, start: float, end: float, margin: float) -> Place:
    """Positions from start to end, `margin` inside, of numbers from low to high; the middle where these are equal."""
    sign = math.copysign(1, end - start)
    first, last = start + sign * margin, end - sign * margin
    span = high - low

    def place(value: float) -> float:
        return round(first + (last - first) * ((value - low) / span if span else 0.5), 1)

    return place


def _labelled(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put each point's name beside it, on the left near the right edge, and move it down off the names above."""
    labels: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: point["y"]):
        width = 7.2 * len(point["name"])
        left = point["x"] + 9 + width > SCATTER[0] - 4
        start = point["x"] - 9 - width if left else point["x"] + 9
        y = point["y"] - 7
        while any(start < end and begin < start + width and abs(y - other) < 13 for begin, end, other in labels):
            y += 3
        labels.append((start, start + width, y))
        point.update(
            label_x=round(point["x"] + (-9 if left else 9), 1), label_y=round(y, 1), anchor="end" if left else "start"
        )
    return points
