"""The report of an evaluation as one HTML page, and as markdown. It lays out, and computes nothing but positions.

The page needs no other file: styles, pictures and script are inside, nothing is fetched, and a policy in its head lets
no other script run. Replies are shown as text, never as markup. A report is a dict of sections, each optional:

    title, command, date, machine; versions {package: version}; warnings [str]
    benchmark {name, questions, source, dropped {reason: count}}; decoding {option: value}
    judge {name, used {what: amount}, note}; systems [{name, path, alpha, identity}]
    pairs [{a, b, wins, ties, losses, unparsable, inconsistent, rate, interval [low, high], length_controlled,
            length_controlled_interval}], rates in [0, 1]
    quality {metrics [{name, unit, better "higher" | "lower" | "", about}],
             rows [{system, values {metric: {mean, interval, n}}}], differences (a table)}
    efficiency [{system, parameters, added, executed, forwards, prefill_ms, decode_ms, tokens_per_s, peak_mib,
                 ratio {median, low, high}}]
    tables [{title, about, columns [str], rows [[cell]]}]
    examples [{id, category, prompt, replies {system: text}, verdicts [{a, b, preference, said}]}]
"""

import base64
import functools
import hashlib
import importlib.resources
from pathlib import Path
from typing import Any

from dual_head.errors import require
from dual_head.evaluate.report import marks, numbers
from dual_head.files.figures import figures_json
from dual_head.files.places import atomic_folder

Report = dict[str, Any]

REPORT_FILE, MARKDOWN_FILE, PAGE_FILE = "report.json", "report.md", "report.html"

INTERVALS = (
    "Intervals are 95% bootstrap intervals: questions are drawn anew with replacement, since questions are what is "
    "independent. Where one system always wins, the interval is Wilson's. Two systems differ where the interval of "
    "their difference leaves out zero, a pair where its interval leaves out 50%; intervals of two systems may overlap "
    "although they differ."
)
EFFICIENCY = {
    "parameters": "parameters of its model",
    "added": "added to it",
    "executed": "read per token",
    "forwards": "forwards per token",
    "prefill_ms": "prefill, ms",
    "decode_ms": "decode, ms per token",
    "tokens_per_s": "tokens per s",
    "peak_mib": "peak memory, MiB",
}


def write(folder: Path, report: Report) -> None:
    """Write the report as a page, as markdown and as JSON."""
    with atomic_folder(folder) as staging:
        (staging / REPORT_FILE).write_text(figures_json(report), encoding="utf-8")
        (staging / MARKDOWN_FILE).write_text(markdown(report), encoding="utf-8")
        (staging / PAGE_FILE).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """Lay a report out as one HTML page that needs nothing else. Errors: jinja2 is not installed."""
    markup = require("markupsafe", "eval").Markup
    style, script = _packaged("page.css"), _packaged("page.js")
    return _template().render(
        report=report,
        **_shown(report),
        style=markup(style),
        script=markup(script),
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'",
        about_intervals=INTERVALS,
    )


def markdown(report: Report) -> str:
    """Lay the same report out as markdown, without the replies."""
    title, subtitle = report.get("title") or "Evaluation", numbers.subtitle(report)
    parts = [f"# {_plain(title)}", _plain(subtitle)]
    parts += [f"> **Note:** {_plain(warning)}" for warning in report.get("warnings") or []]
    for table in tables_of(report):
        parts += [f"## {_plain(table['title'])}", table["about"], _table(table["columns"], table["rows"])]
    parts += ["## How it was measured", INTERVALS]
    parts.append("\n".join(f"- {name}: {_plain(value)}" for name, value in numbers.setting(report)))
    if systems := report.get("systems"):
        rows = [[s["name"], s.get("path"), numbers.strength(s.get("alpha")), s.get("identity")] for s in systems]
        parts.append(_table(["system", "path", "alpha", "identity"], rows))
    return "\n\n".join(filter(None, parts)) + "\n"


def tables_of(report: Report) -> list[dict[str, Any]]:
    """Every table of a report as text: [{title, about, columns, rows}]."""
    tables = [_pairs(report), _quality(report), _efficiency(report)]
    for table in _other_tables(report):
        rows = [[numbers.number(cell) for cell in row] for row in table["rows"]]
        tables.append({**table, "about": _plain(table.get("about") or ""), "rows": rows})
    return [table for table in tables if table["rows"]]


@functools.cache
def _template():
    jinja2 = require("jinja2", "eval")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {}  # systems stay in their order
    environment.filters.update(number=numbers.number, percent=numbers.percent, count=numbers.count)
    return environment.from_string(_packaged("page.html.j2"))


def _shown(report: Report) -> dict[str, Any]:
    """What the page shows beside the report's own values: texts and positions, by section."""
    examples, pairs = report.get("examples") or [], report.get("pairs") or []
    return {
        "subtitle": numbers.subtitle(report),
        "setting": [line for line in numbers.setting(report) if line[0] != "command"],
        "strength": numbers.strength,
        "titled": numbers.titled,
        "headlines": numbers.headlines(pairs),
        "forest": [marks.forest_row(pair) for pair in pairs],
        "by_length": any(marks.forest_row(pair)["by_length"] for pair in pairs),
        "matrix": marks.matrix(pairs),
        "quality": marks.quality(report),
        "scatter": marks.scatter(report),
        "ratios": marks.ratios(report),
        "efficiency_columns": _efficiency_columns(report),
        "tables": _other_tables(report),
        "examples": examples,
        "categories": sorted({example["category"] for example in examples if example.get("category")}),
        "shown_systems": list(dict.fromkeys(name for example in examples for name in example.get("replies") or {})),
    }


def _packaged(name: str) -> str:
    return importlib.resources.files("dual_head.evaluate.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _efficiency_columns(report: Report) -> dict[str, str]:
    """Columns that any system has a figure for: {key: title}."""
    rows = report.get("efficiency") or []
    return {key: title for key, title in EFFICIENCY.items() if any(row.get(key) is not None for row in rows)}


def _pairs(report: Report) -> dict[str, Any]:
    pairs = report.get("pairs") or []
    columns = ["pair", "win rate", "95% interval", "wins", "ties", "losses", "no verdict", "turned with order"]
    controlled = any(pair.get("length_controlled") is not None for pair in pairs)
    columns += ["length-controlled", "95% interval"] if controlled else []
    rows = []
    for pair in pairs:
        row = [f"{pair['a']} against {pair['b']}", numbers.percent(pair["rate"]), _interval(pair.get("interval"), True)]
        row += [numbers.count(pair.get(key)) for key in ("wins", "ties", "losses", "unparsable", "inconsistent")]
        if controlled:
            row += [numbers.percent(pair.get("length_controlled"))]
            row += [_interval(pair.get("length_controlled_interval"), True)]
        rows.append(row)
    about = "Win rate = (wins + ties / 2) / (wins + ties + losses), %."
    return {"title": "Win rates", "about": about, "columns": columns, "rows": rows}


def _quality(report: Report) -> dict[str, Any]:
    quality = report.get("quality") or {}
    metrics = quality.get("metrics") or []
    rows = [
        [row["system"], *(_measured(row["values"].get(metric["name"])) for metric in metrics)]
        for row in quality.get("rows") or []
    ]
    about = "\n".join(f"- {metric['name']}: {_plain(metric['about'])}" for metric in metrics if metric.get("about"))
    columns = ["system", *map(numbers.titled, metrics)]
    return {"title": "Quality", "about": about, "columns": columns, "rows": rows}


def _efficiency(report: Report) -> dict[str, Any]:
    rows, columns = report.get("efficiency") or [], _efficiency_columns(report)
    cells = [[row["system"], *(numbers.number(row.get(key)) for key in columns)] for row in rows]
    titles = ["system", *columns.values()]
    if any(row.get("ratio") for row in rows):
        titles += ["time ratio", "smallest to largest"]
        for line, ratio in zip(cells, (row.get("ratio") or {} for row in rows), strict=True):
            line += [numbers.number(ratio.get("median")), _interval(marks.ends_of(ratio))]
    return {"title": "Efficiency", "about": "", "columns": titles, "rows": cells}


def _other_tables(report: Report) -> list[dict[str, Any]]:
    """Differences first, which belong to the quality above them."""
    differences = (report.get("quality") or {}).get("differences")
    return [*([differences] if differences else []), *(report.get("tables") or [])]


def _measured(value: dict[str, Any] | None) -> str:
    if not value or value.get("mean") is None:
        return numbers.NOTHING
    interval = value.get("interval")
    return numbers.number(value["mean"]) + (f" ({_interval(interval)})" if interval else "")


def _interval(interval: Any, percent: bool = False) -> str:
    if not interval:
        return numbers.NOTHING
    shown = numbers.percent if percent else numbers.number
    return f"{shown(interval[0])} to {shown(interval[1])}"


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    """A markdown table: names left, all other columns right."""
    lines = [columns, [":---", *["---:"] * (len(columns) - 1)]]
    lines += [[numbers.NOTHING if cell is None else cell for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: Any) -> str:
    """Text in one line, without what markdown would take for a cell's end or for HTML."""
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())
