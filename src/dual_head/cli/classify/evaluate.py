"""`dual-head classify evaluate CLASSIFIER [OTHER ...]`: measure classifiers, with intervals and paired differences.

Writes evaluation.json, predictions.jsonl, confusion.png and reliability.png. Several classifiers are compared with the
first, row by row. --config also takes a training config: its held-out data are evaluated.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dual_head import __version__
from dual_head.classify.data.columns import columns_of
from dual_head.cli.classify.evaluate_config import options_of
from dual_head.cli.classify.loading import CLASSIFIER, PredictorOptions, load_predictor
from dual_head.console.gauge import gauged
from dual_head.console.secrets import command_line
from dual_head.console.terminal import Terminal, figures_table
from dual_head.errors import DualHeadError
from dual_head.files.figures import figures_json
from dual_head.files.places import atomic_folder, exclusive
from dual_head.options import option
from dual_head.options.flags import OptionParser

if TYPE_CHECKING:
    from dual_head.classify import Example
    from dual_head.classify.evaluate.run import Measured
    from dual_head.classify.predict import Predictor
    from dual_head.data import RowReport

SUMMARY_FILE, ROWS_FILE = "evaluation.json", "predictions.jsonl"
CONFUSION_FILE, RELIABILITY_FILE = "confusion.png", "reliability.png"
FOLDER = "evaluation"  # in the first classifier's own, where no other is named
PLAIN_WIDTH = 140  # of a table that is not printed on a screen


@dataclass(kw_only=True)
class EvaluateOptions(PredictorOptions):
    """Which classifiers, on which rows, and what is measured."""

    classifier: list[str] = option([], CLASSIFIER, positional=True, nargs="*")
    output_dir: str | None = option(None, "default: evaluation, in the first classifier's folder, where it is one")
    dataset: str = option(None, "a file, a folder, a name on the hub, or a task such as boolq", heading="rows")
    split: str = option("test", "which split")
    data_dir: str | None = option(None, "subfolder, or configuration of a data set on the hub")
    format: str | None = option(None, "format of the rows; default: as in training, or told from the first ones")
    columns: str | dict[str, Any] | None = option(
        None, "which columns are what: input=text,label=class, or the same in JSON"
    )
    template: str | None = option(None, "how an input is written from columns; default: as in training")
    max_rows: int | None = option(None, "read at most so many rows", least=1)
    held_out: float | None = option(
        None, "evaluate only the share of training inputs that training held out", above=0, below=1
    )
    calibrate: bool = option(False, "fit a temperature, and keep it with the classifier", heading="measuring")
    resamples: int = option(2000, "resamples of the bootstrap", least=100, most=100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classifier:
            raise DualHeadError("Say which classifier: its folder, the output_dir of training.")
        _require_places(self)
        columns_of(self.columns)  # a mistake in it should not wait for the classifier
        if not self.dataset:
            raise DualHeadError("Say what to evaluate on with --dataset.")


build_parser = partial(
    OptionParser, EvaluateOptions, command="classify evaluate", description=__doc__, translate=options_of
)


def run(arguments: Sequence[str]) -> int:
    """Parse, and evaluate into a folder that is held."""
    (args,) = build_parser().read(arguments)
    output = Path(args.output_dir or Path(args.classifier[0]) / FOLDER)
    with exclusive(output):
        return _evaluate(args, output, about_run("classify", "evaluate", *arguments))


def _evaluate(args: EvaluateOptions, output: Path, about: dict[str, Any]) -> int:
    """Classify with each classifier, compare, write, print."""
    # Imported late: a mistyped flag should not wait for torch.
    from dual_head.classify.evaluate.run import require_same_rows, summarise

    console = Terminal(plain_width=PLAIN_WIDTH)
    results: dict[str, Measured] = {}
    drops: dict[str, RowReport] = {}
    for name, folder in zip(_names(args.classifier), args.classifier, strict=True):
        results[name], drops[name] = _measure(folder, args, console)
        require_same_rows(next(iter(results.values())), results[name], name)
    with atomic_folder(output):
        pass  # a folder that cannot be written is refused before anything is kept
    for folder, result in zip(args.classifier, results.values(), strict=True):
        if result.calibration is not None:
            result.calibration.save(folder)
    rows = next(iter(drops.values()))
    console.print(rows.table(), soft_wrap=True)
    summary = {
        **about,
        "dataset": {"name": args.dataset, "split": args.split, "held_out": args.held_out},
        "data": rows.as_dict(),
        "folders": dict(zip(results, args.classifier, strict=True)),
        **summarise(results, resamples=args.resamples),
    }
    _write(output, results, summary)
    _print(summary, output, console)
    for name, result in results.items():
        if args.calibrate and result.calibration is None:
            console.print(
                f"{name}: no temperature was kept. All of these rows are right, or nearly so, and the colder the "
                "better: every prediction would be certain. Calibrate on more rows, with errors among them. The "
                "figures above are of the old temperature.",
                soft_wrap=True,
            )
    return 0


def _measure(folder: str, args: EvaluateOptions, console: Console) -> "tuple[Measured, RowReport]":
    from dual_head.classify.evaluate.run import measure

    predictor = load_predictor(args, folder)
    examples, drops = _examples(predictor, args)
    progress = partial(gauged, name=folder, total=len(examples), quiet=console.quiet)
    where = f"{args.dataset}, {args.split}"
    return measure(predictor, examples, calibrate=args.calibrate, fitted_on=where, progress=progress), drops


def _examples(predictor: "Predictor", args: EvaluateOptions) -> "tuple[list[Example], RowReport]":
    """Read the rows, written as this classifier's inputs were in training; of a training set, those it held out."""
    from dual_head.classify.data.load import load_examples
    from dual_head.data import is_held_out

    recorded = {} if args.columns or args.template or args.format else predictor.model.config.text or {}
    loaded = load_examples(
        args.dataset,
        split=args.split,
        data_dir=args.data_dir,
        format=args.format or recorded.get("format") or "auto",
        columns=columns_of(args.columns) or recorded.get("columns"),
        labels=predictor.labels,
        template=args.template or recorded.get("template"),
        max_rows=args.max_rows,
        multi_label=predictor.multi_label,
    )
    rows = loaded.examples
    if args.held_out is not None:
        rows = [row for row in rows if is_held_out(row.side_key, args.held_out)]
        if not rows:
            raise DualHeadError(
                f"Of {len(loaded.examples)} rows none is in the share of {args.held_out} that training held out. "
                "Say --dataset, --split and --held_out as in training."
            )
    return rows, loaded.drops


def _names(folders: Sequence[str]) -> list[str]:
    """A short name for each: the folder's own, with as many of those above it as tell it from the others."""
    paths = [Path(folder).resolve().parts if Path(folder).is_dir() else (folder,) for folder in folders]
    for parts in range(1, 1 + max(map(len, paths))):
        short = ["/".join(path[-parts:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    raise DualHeadError("A classifier is given twice. Leave one out.")


# ---- what is written and shown -------------------------------------------------------------------------------


def about_run(*command: str) -> dict[str, Any]:
    """The command, the day and the versions that figures depend on."""
    import torch
    import transformers

    return {
        "command": command_line("dual-head", *command),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"dual_head": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _write(output: Path, results: "Mapping[str, Measured]", summary: dict[str, Any]) -> None:
    from dual_head.classify.evaluate.run import bins, lines

    with atomic_folder(output) as staging:
        (staging / SUMMARY_FILE).write_text(figures_json(summary), encoding="utf-8")
        with (staging / ROWS_FILE).open("w", encoding="utf-8") as stream:
            for name, result in results.items():
                stream.writelines(json.dumps(line) + "\n" for line in lines(name, result))
        try:
            from dual_head.classify.evaluate.plots import confusion_picture, reliability_picture
        except ImportError:
            return  # pictures are welcome, not needed
        confusion_picture(summary["classifiers"], staging / CONFUSION_FILE)
        reliability_picture({name: bins(result) for name, result in results.items()}, staging / RELIABILITY_FILE)


def _print(summary: dict[str, Any], output: Path, console: Console) -> None:
    console.print(_table(summary))
    for name, difference in summary["differences"].items():
        console.print(_difference(name, difference), soft_wrap=True)
    for name, figures in summary["classifiers"].items():
        if count := figures["truncated"]:
            console.print(f"{name}: {count} inputs are longer than it reads, and were cut.", soft_wrap=True)
        if calibration := figures.get("calibration"):
            console.print(
                f"{name}: T = {calibration['temperature']:.3g}, kept in its folder. Without one nll is "
                f"{calibration['uncalibrated']['nll']:.4f}; the figures above are of temperatures that were fitted on "
                "the other half of the rows.",
                soft_wrap=True,
            )
    console.print(f"figures   {output / SUMMARY_FILE}\nrows      {output / ROWS_FILE}", soft_wrap=True)
    drawn = (output / CONFUSION_FILE).is_file()
    pictures = f"{output / CONFUSION_FILE}, {RELIABILITY_FILE}" if drawn else "none: pip install 'dual-head[plot]'"
    console.print(f"pictures  {pictures}", soft_wrap=True)


def _difference(name: str, difference: Mapping[str, Any]) -> str:
    """One classifier less the first: each metric with its interval, and the rows that one alone gets right."""
    parts = [
        f"{metric} {value['difference']:+.4f} [{value['interval'][0]:+.4f}, {value['interval'][1]:+.4f}]"
        for metric, value in difference.items()
        if isinstance(value, dict)
    ]
    right = "exact" if "exact_match" in difference else "right"
    return (
        f"{name} less {difference['from']}: {', '.join(parts)}; {right} where the other is not "
        f"{difference['only_second']} times, not {right} where it is {difference['only_first']}; "
        f"p = {difference['p_value']:.3g} (McNemar)"
    )


def _table(summary: dict[str, Any]) -> Table:
    columns, majority, data = dict(summary["classifiers"]), summary["majority"], summary["dataset"]
    first = next(iter(columns.values()))
    if majority:
        columns[f"always {majority['label']}"] = majority
    groups = f" in {first['groups']} groups" if "groups" in first else ""
    title = f"{data['name']}, {data['split']}: {first['rows']} rows{groups}, 95% intervals"
    metrics = [key for key, value in first.items() if isinstance(value, dict) and "mean" in value]
    rows = ([metric, *(_figure(figures.get(metric)) for figures in columns.values())] for metric in metrics)
    return figures_table(title, ["", *columns], rows)


def _figure(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{value['mean']:.4f} [{value['interval'][0]:.4f}, {value['interval'][1]:.4f}]"


# ---- options -----------------------------------------------------------------------------------------------


def _require_places(args: EvaluateOptions) -> None:
    """Refuse to keep anything with a classifier that is not a folder here, such as one on the hub."""
    elsewhere = [place for place in args.classifier if not Path(place).is_dir()]
    if args.classifier[0] in elsewhere and not args.output_dir:
        raise DualHeadError(f"'{args.classifier[0]}' is not a folder here. Say where to write with --output_dir.")
    if elsewhere and args.calibrate:
        raise DualHeadError(
            f"--calibrate keeps the temperature in the classifier's folder, and '{elsewhere[0]}' is not a folder here. "
            "Download it and give its folder."
        )
