"""`dual-head eval BENCHMARK --models base=PATH,guided=PATH@1.5`: compare systems on the same questions.

Answers and verdicts are kept in the output folder, so that a killed run goes on and a second one costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dual_head.console.secrets import command_line
from dual_head.console.terminal import Terminal
from dual_head.data.sources import is_hub_name
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks import BENCHMARKS, load_benchmark
from dual_head.evaluate.judges import JUDGES
from dual_head.evaluate.metrics import METRICS
from dual_head.evaluate.options import EvaluationOptions
from dual_head.files.places import exclusive, require_place
from dual_head.options import option
from dual_head.options.flags import OptionParser

PLAIN_WIDTH = 160
PAGE_FILE = "report.html"  # of no other command
REPORTS = ("report.json", "report.md")


@dataclass(kw_only=True)
class EvalOptions(EvaluationOptions):
    """An evaluation, and where its files go."""

    output_dir: str = option(help="folder for answers, verdicts and the report")


build_parser = partial(
    OptionParser,
    EvalOptions,
    command="eval",
    description=__doc__,
    listings={"benchmarks": BENCHMARKS, "judges": JUDGES, "metrics": METRICS},
)


def read(arguments: Sequence[str]) -> EvalOptions:
    """Read a command line. Errors: options that its benchmark, or its other options, leave without effect."""
    (options,) = build_parser().read(arguments)
    # Imported late: a mistyped option should not wait for numpy or torch.
    from dual_head.evaluate.benchmarks.choices import ChoiceBenchmark

    if isinstance(load_benchmark(options.benchmark), ChoiceBenchmark):
        options.require_of_choices()
    else:
        options.require_of_replies()
    return options


def run(arguments: Sequence[str]) -> int:
    """Read, evaluate, print."""
    options = read(arguments)
    _require_places(options.models)
    console = Terminal(plain_width=PLAIN_WIDTH)
    output = Path(options.output_dir)
    with exclusive(options.output_dir):
        require_place(output, record=PAGE_FILE, writes=REPORTS)
        from dual_head.evaluate.run import evaluate

        report = evaluate(options, output, console, command=command_line("dual-head", "eval", *arguments))
    _print(report, output, console)
    return 0


def _require_places(models: Sequence[str]) -> None:
    """Refuse a system whose path is not there, and that is not the form of a hub name."""
    from dual_head.evaluate.systems.specs import NO_FILES, parse_systems

    for spec in parse_systems(models):
        exists = spec.path.startswith(NO_FILES) or Path(spec.path).expanduser().exists()
        if not exists and not is_hub_name(spec.path):
            raise DualHeadError(
                f"There is no system at '{spec.path}': no such folder or file. Give a folder of guides, a causal LM "
                "(folder or hub name), a PEFT adapter, or a file of answers."
            )


def _print(report: dict[str, Any], output: Path, console: Console) -> None:
    from dual_head.evaluate.report.numbers import subtitle
    from dual_head.evaluate.report.page import tables_of

    console.print(subtitle(report), soft_wrap=True)
    for section in tables_of(report):
        columns, rows = section["columns"], section["rows"]
        if len(columns) > len(rows) + 1:  # wider than long: turned round, so that a screen has room for it
            columns, *rows = zip(columns, *rows, strict=True)
        table = Table(title=section["title"], box=box.SIMPLE_HEAD)
        table.add_column(columns[0], no_wrap=True)
        for column in columns[1:]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*map(str, row))
        console.print(table)
    for warning in report.get("warnings", []):
        console.print(f"note: {warning}", soft_wrap=True)
    for label, name in (("page", "report.html"), ("table", "report.md"), ("figures", "report.json")):
        console.print(f"{label:<8} {output / name}", soft_wrap=True)
