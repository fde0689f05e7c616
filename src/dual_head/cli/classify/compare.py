"""`dual-head classify compare`: train a classifier under several controls and seeds, and tabulate the differences.

Trains each control at each seed on the same rows, for the same steps, and judges all on the same held-out rows. Writes
compare.json and compare.md: accuracy, its difference from the plain classifier (pooled) and from the one that was asked
for (none), and macro-F1, with 95% intervals that resample seeds and rows both. Takes every option of
`dual-head classify train`. A run that is done is not trained again, one that was stopped goes on; more controls and
seeds may be added later.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from rich import box
from rich.console import Console
from rich.table import Table

from dual_head.classify.train.controls import Control
from dual_head.cli.training import end_processes
from dual_head.console.secrets import command_line
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive
from dual_head.files.reading import ANEW, read_json
from dual_head.options import Options, option

if TYPE_CHECKING:
    from accelerate import PartialState

    from dual_head.classify.train.compare import Plan, Record
    from dual_head.options.flags import OptionParser

RUNS, PLAN_FILE = "runs", "plan.json"
FIGURES, PAGE = "compare.json", "compare.md"
CONTROLS: list[Control] = list(get_args(Control))
# What one run is told, and what all are told instead.
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
    seeds: list[int] = option([0, 1, 2], "of each control a run of each", least=0)
    resamples: int = option(2000, "of the bootstrap", least=100, most=100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.controls and self.seeds):
            raise DualHeadError("--controls and --seeds are lists, such as [none, pooled] and [0, 1, 2], not empty.")
        self.controls, self.seeds = list(dict.fromkeys(self.controls)), list(dict.fromkeys(self.seeds))


def run(arguments: Sequence[str]) -> int:
    """Parse, and compare in a folder that is held."""
    # Imported late: the list of commands should not wait for torch.
    from accelerate import PartialState

    from dual_head.classify.train.compare import plan_of

    parser = build_parser(help_all="--help_all" in arguments)
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    options, training, comparison = _parsed(parser, arguments)
    plan = plan_of(options, training, comparison.controls)
    processes = PartialState(cpu=training.use_cpu)
    with exclusive(training.output_dir, main=processes.is_main_process):
        output = _begin(training.output_dir, plan, processes, restart=options.restart)
        _compare(parser, comparison, plan, output, arguments)
    end_processes()
    return 0


def _compare(
    parser: "OptionParser", comparison: ComparisonOptions, plan: "Plan", output: Path, arguments: Sequence[str]
) -> None:
    """Train what is not done, compare, write, print."""
    # Imported late, as above.
    from accelerate import PartialState

    from dual_head.classify.train.compare import compare
    from dual_head.cli.classify import train
    from dual_head.cli.classify.evaluate import PLAIN_WIDTH, versions

    main = PartialState().is_main_process
    console = Terminal(quiet=not main)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    runs = {
        control: {seed: output / RUNS / f"{control}-seed{seed}" for seed in comparison.seeds}
        for control in comparison.controls
    }
    records = _records(runs, plan, lambda flags: train.parsed(parser, [*arguments, *flags]), console)
    if main:
        found = {
            "command": command_line("dual-head", "classify", "compare", *arguments),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
            "plan": plan.identity,
            "runs": {control: list(map(str, folders.values())) for control, folders in runs.items()},
            **compare(records, plan, resamples=comparison.resamples),
        }
        _write(output, found)
        _print(console, output, found)


def _begin(place: Any, plan: "Plan", processes: "PartialState", *, restart: bool) -> Path:
    """Say what the folder is for, and give it. Errors: it is another plan's, by what differs."""
    from dual_head.train.identity import check_same_run
    from dual_head.train.resume import writable

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
    runs: Mapping[str, Mapping[int, Path]], plan: "Plan", parsed: Callable[[list[str]], Any], console: Console
) -> "dict[str, list[Record]]":
    """The record of every run, by control and in the order of the seeds: as it was left, or made now."""
    from accelerate import PartialState

    from dual_head.classify.train.compare import load_record, train_one

    found: dict[str, list[Record]] = {control: [] for control in runs}
    seeds = list(next(iter(runs.values())))
    # Seeds outermost: what is stopped early has every system.
    for number, (seed, control) in enumerate([(seed, control) for seed in seeds for control in runs], 1):
        folder = runs[control][seed]
        console.rule(f"{control}, seed {seed} ({number} of {len(seeds) * len(runs)})")
        said = ["--control", control, "--seed", str(seed), "--output_dir", str(folder)]
        options, training, _ = parsed(said)
        record = None if options.restart else load_record(folder, plan)
        if record is None:
            record = train_one(options, training, plan)
            if PartialState().is_main_process:
                record.save(folder)
        else:
            console.print(f"Already trained to the end, and judged: {folder}.", soft_wrap=True)
        found[control].append(record)
    return found


# ---- the table ---------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what `comparison.compare` found, in percent.

    system, the first figure with its interval and by seed, its differences from pooled and from none where they are
    there, then the other figures; always giving the most frequent label, where there is one, stands last.
    """
    from dual_head.classify.train.compare import OVER

    systems, majority = found["systems"], found["majority"]
    first, *others = (name for name in SHARES if name in next(iter(systems.values())))
    over = [name for name in OVER if name in systems and len(systems) > 1]
    columns = ["system", f"{SHARES[first]} % (95%)", "by seed", *(f"over {name} (95%)" for name in over)]
    columns += [f"{SHARES[name]} % (95%)" for name in others]
    rows = []
    for name, own in systems.items():
        away = own[first]["over"]
        rows.append(
            [
                name,
                _percent(own[first]["mean"], own[first]["interval"]),
                " / ".join(f"{100 * value:.1f}" for value in own[first]["by_seed"]),
                *(_percent(away[o]["difference"], away[o]["interval"], "+.1f") if o in away else "" for o in over),
                *(_percent(own[other]["mean"], own[other]["interval"]) for other in others),
            ]
        )
    if majority:
        known = {
            name: _percent(majority[name]["mean"], majority[name]["interval"]) for name in SHARES if name in majority
        }
        rows.append([f"always {majority['label']}", known[first], "", *([""] * len(over)), *map(known.get, others)])
    return columns, rows


def _percent(value: float, interval: Sequence[float], form: str = ".1f") -> str:
    return f"{100 * value:{form}} ({100 * interval[0]:{form}} to {100 * interval[1]:{form}})"


def _about(found: Mapping[str, Any]) -> str:
    grouped = f" in {found['groups']} groups" if "groups" in found else ""
    seeds = found["seeds"]
    if len(seeds) == 1:
        sure = f"seed {seeds[0]}; 95% intervals resample rows only: with more --seeds they say more."
    else:
        sure = f"seeds {', '.join(map(str, seeds))}; 95% intervals resample seeds and rows."
    return f"{found['rows']} held-out rows{grouped}, {found['steps']} steps, {sure}"


def _write(output: Path, found: Mapping[str, Any]) -> None:
    columns, rows = table(found)
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    with atomic_folder(output) as staging:
        (staging / FIGURES).write_text(json.dumps(found, indent=2) + "\n")
        (staging / PAGE).write_text(f"{_about(found)}\n\n" + "\n".join(lines) + "\n")


def _print(console: Console, output: Path, found: Mapping[str, Any]) -> None:
    columns, rows = table(found)
    shown = Table(columns[0], title=_about(found), box=box.SIMPLE_HEAD)
    for name in columns[1:]:
        shown.add_column(name, justify="right", overflow="fold")
    for cells in rows:
        shown.add_row(*cells)
    console.print(shown)
    console.print(f"table   {output / PAGE}\nfigures {output / FIGURES}", soft_wrap=True)


# ---- what is asked for ---------------------------------------------------------------------------------------


def build_parser(*, help_all: bool = False) -> "OptionParser":
    """Make the parser: that of `classify train`, with the controls and seeds of all runs."""
    from dual_head.cli.classify import train

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


def _parsed(parser: "OptionParser", arguments: Sequence[str]) -> "tuple[Any, Any, ComparisonOptions]":
    """The options of all runs, and of their comparison. Errors: what is of a single run, and all of `train`'s."""
    from dual_head.cli.classify import train

    for name, remedy in OF_ONE_RUN.items():
        if any(argument.split("=")[0] == f"--{name}" for argument in arguments):
            raise DualHeadError(f"--{name} is of one run, and these are several. {remedy}")
    options, training, comparison = train.parsed(parser, arguments)
    if training.resume_from_checkpoint:
        raise DualHeadError("--resume_from_checkpoint is of one run. Leave it out: what was stopped goes on by itself.")
    return options, training, comparison
