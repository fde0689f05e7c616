"""`dual-head classify compare`: train a classifier under several controls and seeds, and tabulate the differences.

Trains each control at each seed on the same rows, for the same steps, and judges all on the same held-out rows. Writes
compare.json and compare.md: accuracy, its difference from the plain classifier (pooled) and from the one with
unchanged rationales (none), and macro-F1, with 95% intervals that resample seeds and rows both. Takes every option of
`dual-head classify train`. Finished runs are not trained again, stopped runs go on, and more controls and seeds may be
added later.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from accelerate import PartialState
from rich.console import Console

from dual_head.classify.train import compare as comparison
from dual_head.classify.train.controls import Control
from dual_head.cli.classify import train
from dual_head.cli.classify.evaluate import PLAIN_WIDTH, about_run
from dual_head.cli.training import end_processes
from dual_head.console.terminal import Terminal, figures_table
from dual_head.errors import DualHeadError
from dual_head.files.figures import figures_json
from dual_head.files.places import atomic_folder, exclusive
from dual_head.files.reading import ANEW, read_json
from dual_head.options import Options, option
from dual_head.options.flags import OptionParser
from dual_head.train.identity import check_same_run
from dual_head.train.resume import writable

RUNS, PLAN_FILE = "runs", "plan.json"
FIGURES, PAGE = "compare.json", "compare.md"
CONTROLS: list[Control] = list(get_args(Control))
# Options of one run, and what to say for all runs instead.
OF_ONE_RUN = {
    "control": "Say --controls, as in --controls none pooled shuffled.",
    "seed": "Say --seeds, as in --seeds 0 1 2.",
}
SHARES = {  # columns, where there are such figures
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "f1a": "F1a",
    "em": "EM",
}


@dataclass(kw_only=True)
class ComparisonOptions(Options):
    """What sets the runs apart; each control and seed once."""

    _argument_group_name: ClassVar[str] = "comparison"

    controls: list[Control] = option(CONTROLS, "default: all")
    seeds: list[int] = option([0, 1, 2], "one run of each control at each seed", least=0)
    resamples: int = option(2000, "resamples of the bootstrap", least=100, most=100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.controls and self.seeds):
            raise DualHeadError("--controls and --seeds are lists, such as [none, pooled] and [0, 1, 2], not empty.")
        self.controls, self.seeds = list(dict.fromkeys(self.controls)), list(dict.fromkeys(self.seeds))


def run(arguments: Sequence[str]) -> int:
    """Parse; in a folder that is held train what is missing, compare, write and print."""
    parser = build_parser(help_all="--help_all" in arguments)
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    options, training, choices = _parsed(parser, arguments)
    plan = comparison.plan_of(options, training, choices.controls)
    processes = PartialState(cpu=training.use_cpu)
    main = processes.is_main_process
    console = Terminal(quiet=not main, plain_width=PLAIN_WIDTH)
    with exclusive(training.output_dir, main=main):
        output = _begin(training.output_dir, plan, processes, restart=options.restart)
        runs = {
            control: {seed: output / RUNS / f"{control}-seed{seed}" for seed in choices.seeds}
            for control in choices.controls
        }
        records = _records(runs, plan, lambda flags: parser.read([*arguments, *flags]), console, main=main)
        if main:
            report = {
                **about_run("classify", "compare", *arguments),
                "plan": plan.identity,
                "runs": {control: list(map(str, folders.values())) for control, folders in runs.items()},
                **comparison.compare(records, plan, resamples=choices.resamples),
            }
            _write(output, report)
            _print(console, output, report)
    end_processes()
    return 0


def _begin(place: Any, plan: comparison.Plan, processes: PartialState, *, restart: bool) -> Path:
    """Make the folder, and record its plan. Errors: it has another plan, by what differs."""
    output = writable(place, record=PLAN_FILE)
    file = output / PLAN_FILE
    if file.is_file() and not restart:
        check_same_run(read_json(file, ANEW), plan.identity, str(output))
    processes.wait_for_everyone()
    if processes.is_main_process:
        with atomic_folder(output) as staging:
            (staging / PLAN_FILE).write_text(json.dumps(plan.identity, indent=2) + "\n")
    return output


def _records(
    runs: Mapping[str, Mapping[int, Path]],
    plan: comparison.Plan,
    parsed: Callable[[list[str]], Any],
    console: Console,
    *,
    main: bool,
) -> dict[str, list[comparison.Record]]:
    """The record of every run, by control and in the order of the seeds: as it was left, or made now."""
    records: dict[str, list[comparison.Record]] = {control: [] for control in runs}
    seeds = list(next(iter(runs.values())))
    # Seeds outermost: an early stop leaves every system at some seeds.
    for number, (seed, control) in enumerate([(seed, control) for seed in seeds for control in runs], 1):
        folder = runs[control][seed]
        console.rule(f"{control}, seed {seed} ({number} of {len(seeds) * len(runs)})")
        options, training, *_ = parsed(["--control", control, "--seed", str(seed), "--output_dir", str(folder)])
        record = None if options.restart else comparison.load_record(folder, plan)
        if record is None:
            record = comparison.train_one(options, training, plan)
            if main:
                record.save(folder)
        else:
            console.print(f"Already trained to the end, and judged: {folder}.", soft_wrap=True)
        records[control].append(record)
    return records


# ---- the table ---------------------------------------------------------------------------------------------


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a comparison, in percent.

    system, the first figure with its interval and by seed, its differences from pooled and from none where they were
    trained, then the other figures; always giving the most frequent label stands last, where there is one.
    """
    systems, majority = report["systems"], report["majority"]
    first, *others = (name for name in SHARES if name in next(iter(systems.values())))
    references = [name for name in comparison.OVER if name in systems and len(systems) > 1]
    columns = ["system", f"{SHARES[first]} % (95%)", "by seed", *(f"over {name} (95%)" for name in references)]
    columns += [f"{SHARES[name]} % (95%)" for name in others]
    rows = []
    for name, figures in systems.items():
        gains = [figures[first]["over"].get(reference) for reference in references]
        rows.append(
            [
                name,
                _percent(figures[first]),
                " / ".join(f"{100 * value:.1f}" for value in figures[first]["by_seed"]),
                *(_percent(gain, "difference", "+.1f") if gain else "" for gain in gains),
                *(_percent(figures[other]) for other in others),
            ]
        )
    if majority:
        cells = {name: _percent(majority[name]) for name in SHARES if name in majority}
        rows.append([f"always {majority['label']}", cells[first], *[""] * (1 + len(references))])
        rows[-1] += [cells.get(name, "") for name in others]
    return columns, rows


def _percent(figure: Mapping[str, Any], key: str = "mean", form: str = ".1f") -> str:
    value, low, high = (100 * number for number in (figure[key], *figure["interval"]))
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _about(report: Mapping[str, Any]) -> str:
    groups = f" in {report['groups']} groups" if "groups" in report else ""
    seeds = report["seeds"]
    if len(seeds) == 1:
        resampled = f"seed {seeds[0]}; 95% intervals resample rows only: with more --seeds they say more."
    else:
        resampled = f"seeds {', '.join(map(str, seeds))}; 95% intervals resample seeds and rows."
    return f"{report['rows']} held-out rows{groups}, {report['steps']} steps, {resampled}"


def _write(output: Path, report: Mapping[str, Any]) -> None:
    columns, rows = table(report)
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    with atomic_folder(output) as staging:
        (staging / FIGURES).write_text(figures_json(report), encoding="utf-8")
        (staging / PAGE).write_text(f"{_about(report)}\n\n" + "\n".join(lines) + "\n")


def _print(console: Console, output: Path, report: Mapping[str, Any]) -> None:
    columns, rows = table(report)
    console.print(figures_table(_about(report), columns, rows))
    console.print(f"table   {output / PAGE}\nfigures {output / FIGURES}", soft_wrap=True)


# ---- options -----------------------------------------------------------------------------------------------


def build_parser(*, help_all: bool = False) -> OptionParser:
    """Make the parser: that of `classify train`, with the controls and seeds of all runs."""
    parser = train.build_parser(
        ComparisonOptions,
        command="classify compare",
        usage="--output_dir O [--controls C ...] [--seeds S ...] [options of train]",
        description=__doc__,
        help_all=help_all,
    )
    for action in parser._actions:
        if action.dest in (*OF_ONE_RUN, "resume_from_checkpoint"):
            action.help = argparse.SUPPRESS
    parser.set_defaults(output_dir="outputs/compare")
    return parser


def _parsed(parser: OptionParser, arguments: Sequence[str]) -> tuple[Any, Any, ComparisonOptions]:
    """The options of all runs, and of their comparison. Errors: options of one run, and all of `train`'s."""
    for name, remedy in OF_ONE_RUN.items():
        if any(argument.split("=")[0] == f"--{name}" for argument in arguments):
            raise DualHeadError(f"--{name} is of one run, and these are several. {remedy}")
    options, training, choices, *_ = parser.read(arguments)
    if training.resume_from_checkpoint:
        raise DualHeadError("--resume_from_checkpoint is of one run. Leave it out: what was stopped goes on by itself.")
    return options, training, choices
