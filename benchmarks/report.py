"""What was measured, as JSON, as tables in docs/results/speed.md, and as pictures.

    python benchmarks/report.py    # writes the tables and the picture again from benchmarks/results/cpu.json

A section is one table with its note and the bound that no implementation can beat; a point is one figure of one side
at one size. Each is kept with the machine it was measured on, so sections can be measured again one by one. It knows
no side and measures nothing.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from measure import Timing

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "cpu.json"
PAGE = ROOT / "docs" / "results" / "speed.md"
PICTURE = ROOT / "docs" / "results" / "speed.png"

Cell = str | float | int | None
BLOCK = re.compile(r"<!-- bench:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /bench -->", re.DOTALL)
OPENING = "<!-- bench:"

# What a point may be of, and along which axis, to the words in the picture.
MEASURES = {"ms": "time of a step or a token, ms", "mb": "peak memory over the floor, MiB"}
AXES = {"V": "vocabulary V", "T": "tokens T of a sequence", "rank": "rank", "guides": "number of guides"}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table: rows of cells under columns; what was measured (note), and what could at best be (bound)."""

    name: str  # of its markers
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    bound: str = ""

    def __post_init__(self) -> None:
        uneven = [row for row in self.rows if len(row) != len(self.columns)]
        if uneven:
            raise ValueError(f"{self.name}: the row {uneven[0]} does not have {len(self.columns)} cells.")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One figure of one side: median and spread of a measure ("ms", "mb") at a size along an axis ("V", "T", ...)."""

    side: str
    measure: str
    axis: str
    at: float
    median: float
    spread: tuple[float, float]

    def __post_init__(self) -> None:
        if self.measure not in MEASURES or self.axis not in AXES:
            raise ValueError(f"A point is of {', '.join(MEASURES)} over {', '.join(AXES)}; not {self}.")


# ---- ratios ----------------------------------------------------------------------------------------------


def faster(side: Timing, than: Timing) -> str:
    """How many times faster than another side: median, smallest and largest of the rounds."""
    return _spread(than.over(side))


def times_of(side: Timing, of: Timing) -> str:
    """How many times the time of another side."""
    return _spread(side.over(of))


def quarters(side: Timing, of: Timing) -> str:
    """How many times the time of another side: median and quartiles."""
    ratios = side.over(of)
    low, middle, high = (ratios[i * (len(ratios) - 1) // 4] for i in (1, 2, 3))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def interval(side: Timing) -> str:
    """How many times the reference's time: median and its 95% interval."""
    low, high = side.interval
    return f"{side.ratio:.3f} ({low:.3f} to {high:.3f})"


def _spread(ratios: list[float]) -> str:
    return f"{ratios[len(ratios) // 2]:.3g} ({ratios[0]:.3g} to {ratios[-1]:.3g})"


# ---- JSON ------------------------------------------------------------------------------------------------


def collect(section: Section, machine: Mapping[str, Any], file: Path = RESULTS) -> None:
    """Keep a section, in place of an earlier one of its name."""
    results = read(file)
    results["sections"][section.name] = {**asdict(section), "machine": dict(machine)}
    _write(results, file)


def collect_points(points: Iterable[Point], machine: Mapping[str, Any], file: Path = RESULTS) -> None:
    """Keep points, in place of earlier ones of the same side, measure, axis and size on such a processor."""
    results = read(file)
    kept = {_key(point): point for point in results["points"]}
    kept.update({_key(row): row for row in ({**asdict(point), "machine": dict(machine)} for point in points)})
    results["points"] = [kept[key] for key in sorted(kept)]
    _write(results, file)


def read(file: Path = RESULTS) -> dict[str, Any]:
    """Everything collected so far: {"sections": {name: ...}, "points": [...]}."""
    return json.loads(file.read_text()) if file.exists() else {"sections": {}, "points": []}


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return (point["machine"]["cpu"], *(point[name] for name in ("measure", "axis", "side", "at")))


def _write(results: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


# ---- Markdown --------------------------------------------------------------------------------------------


def markdown(section: Mapping[str, Any]) -> str:
    """A section as `read` gives it: note, table, bound and machine."""
    columns = section["columns"]
    rows = [[cell(value) for value in row] for row in section["rows"]]
    lines = [_line(columns), _line(["---"] * len(columns)), *(_line(row) for row in rows)]
    table = "\n".join(lines)
    bound = f"Bound: {section['bound']}" if section.get("bound") else ""
    return "\n\n".join(part for part in (section.get("note"), table, bound, _measured_on(section["machine"])) if part)


def cell(value: Cell) -> str:
    """A cell's text: whole numbers whole, others to three digits, strings as they are, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _measured_on(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"*{where}; {versions}; {machine['date']}, commit {machine['commit']}.*"


def replaced(text: str, tables: Mapping[str, str]) -> str:
    """Put each table between its markers, `<!-- bench:NAME -->` and `<!-- /bench -->`; all else stays as it is.

    Errors: a table without markers, markers that are not closed, twice the same name.
    """
    blocks = list(BLOCK.finditer(text))
    names = [block["name"] for block in blocks]
    if len(names) != text.count(OPENING) or any(OPENING in block["body"] for block in blocks):
        raise ValueError("A bench marker is not closed. Write <!-- /bench --> before the next one.")
    if len(set(names)) != len(names):
        raise ValueError(f"Markers appear twice: {', '.join(sorted(names))}.")
    if missing := sorted(set(tables) - set(names)):
        raise ValueError(
            f"The page has no place for {', '.join(missing)}. Add <!-- bench:{missing[0]} --> and close it."
        )

    def block(found: re.Match[str]) -> str:
        body = f"\n{tables[found['name']]}\n\n" if found["name"] in tables else found["body"]
        return f"<!-- bench:{found['name']} -->\n{body}<!-- /bench -->"

    return BLOCK.sub(block, text)


def fill(page: Path = PAGE, file: Path = RESULTS) -> None:
    """Write every section that was collected into the page; markers of others keep what they hold."""
    tables = {name: markdown(section) for name, section in read(file)["sections"].items()}
    page.write_text(replaced(page.read_text(), tables))


# ---- pictures --------------------------------------------------------------------------------------------


def draw(points: Iterable[Mapping[str, Any]], picture: Path = PICTURE) -> None:
    """Draw what the processor that was measured last has points of: a line for each side, with its spread."""
    from matplotlib.colors import TABLEAU_COLORS  # the `plot` extra
    from matplotlib.figure import Figure

    points = list(points)
    newest = max((point["machine"] for point in points), key=lambda machine: machine["date"])
    points = [point for point in points if point["machine"]["cpu"] == newest["cpu"]]
    measures = [name for name in MEASURES if any(point["measure"] == name for point in points)]
    axes = [name for name in AXES if any(point["axis"] == name for point in points)]
    figure = Figure(figsize=(3.4 * len(axes), 2.9 * len(measures) + 0.4), layout="constrained")
    panels = figure.subplots(len(measures), len(axes), squeeze=False)
    colours = dict(zip(dict.fromkeys(point["side"] for point in points), cycle(TABLEAU_COLORS.values()), strict=False))
    for row, measure in zip(panels, measures, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            here = [point for point in points if (point["measure"], point["axis"]) == (measure, axis)]
            _panel(panel, here, colours, (MEASURES[measure], AXES[axis]))
    # One legend for all panels, as a side keeps its colour.
    lines = {
        label: line for panel in panels.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), fontsize=8, loc="outside lower center", ncols=len(axes))
    figure.suptitle(f"{newest['cpu']}, {newest['threads']} threads, {newest['date']}", fontsize=9)
    figure.savefig(picture, dpi=120)


def _panel(panel: Any, points: list[Mapping[str, Any]], colours: Mapping[str, Any], names: tuple[str, str]) -> None:
    from dual_head.evaluate.sweep_plots import interval_line, label_panel

    if not points:
        panel.set_axis_off()
        return
    sides = [side for side in colours if any(point["side"] == side for point in points)]
    panel.set_prop_cycle(color=[colours[side] for side in sides])
    for side in sides:
        own = sorted((point for point in points if point["side"] == side), key=lambda point: point["at"])
        values = [{"mean": point["median"], "interval": point["spread"]} for point in own]
        interval_line(panel, [point["at"] for point in own], values, side)
    label_panel(panel, *names)
    panel.set_ylim(bottom=0)  # so that twice as high is twice as much


def main() -> None:
    """Write the page and the picture again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    fill(args.page, args.results)
    if points := read(args.results)["points"]:
        draw(points, args.picture)


if __name__ == "__main__":
    main()
