"""`dual-head classify lint`: look for what makes rationales useless, or too good to be true."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from dual_head.cli.classify.dataset import DatasetOptions, load_dataset
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive, require_unread
from dual_head.options import option
from dual_head.options.flags import OptionParser

if TYPE_CHECKING:
    from dual_head.classify.data.load import Loaded
    from dual_head.classify.rationales.lint import Lint
    from dual_head.classify.rationales.probe import Accuracy

PLAIN_WIDTH = 140  # of a table that is not printed on a screen
CUT = 70  # characters shown of a rationale


@dataclass(kw_only=True)
class LintOptions(DatasetOptions):
    """What to look for, and where to write it."""

    held_out: str | None = option(
        None, "rows to measure the leak probe on; default: 5-fold cross-validation", heading="looking"
    )
    held_out_split: str | None = option(None, "split of --held_out, or of --dataset without it")
    no_probe: bool = option(False, "leave out the leak probe, which needs scikit-learn")
    reason_prefix: str | None = option(None, "what stands before a rationale when it is trained on")
    answer_prefix: str | None = option(None, "what stands before an answer")
    tokenizer: str | None = option(None, "tokenizer of the backbone: its special tokens are looked for in rationales")
    seed: int = option(0, "draws the sample that the probe is fitted on", least=0)
    output: str | None = option(None, "also write all figures there, as JSON", metavar="FILE")


build_parser = partial(OptionParser, LintOptions, command="classify lint", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, read, look, print; with --output also JSON."""
    (args,) = build_parser().read(arguments)
    if args.output:
        if Path(args.output).is_dir():
            raise DualHeadError(f"--output is a file, and '{args.output}' is a folder. Name a file in it.")
        require_unread(Path(args.output), [args.dataset, args.held_out])
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.classify import TextForm
    from dual_head.classify.data.load import overlap
    from dual_head.classify.rationales.lint import lint

    loaded = load_dataset(args)
    held_out = None
    if args.held_out or args.held_out_split:
        source = {"name": args.held_out or args.dataset, "split": args.held_out_split or args.split}
        held_out = load_dataset(args, labels=loaded.labels, **source).examples
    form = TextForm(**{name: getattr(args, name) for name in ("reason_prefix", "answer_prefix") if getattr(args, name)})
    result = lint(
        loaded.examples,
        loaded.labels,
        held_out=held_out,
        form=form,
        special=_special(args.tokenizer),
        probing=not args.no_probe,
        seed=args.seed,
    )
    shared = None if held_out is None else len(overlap(loaded.examples, held_out))
    if args.output:
        with exclusive(args.output):
            _write(Path(args.output), result, loaded, shared, arguments)
    _print(result, loaded, shared, args.output)
    return 0


def _special(tokenizer: str | None) -> list[str]:
    if not tokenizer:
        return []
    from dual_head.classify.data.tokenize import special_tokens
    from dual_head.model.pretrained import load_tokenizer

    return special_tokens(load_tokenizer(tokenizer))


def _write(file: Path, result: "Lint", loaded: "Loaded", shared: int | None, arguments: Sequence[str]) -> None:
    command = ["dual-head", "classify", "lint", *arguments]
    about = {"command": command, "format": loaded.format, "read": loaded.drops.as_dict()}
    report = {**about, "held_out_inputs_seen": shared, **result.as_dict()}
    with atomic_folder(file.parent) as staging:
        (staging / file.name).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _print(result: "Lint", loaded: "Loaded", shared: int | None, output: str | None) -> None:
    console = Terminal(plain_width=PLAIN_WIDTH)
    counts = ", ".join(f"{name} {count}" for name, count in result.labels.items())
    console.print(f"{loaded.drops.table()}\nread as {loaded.format}; rows of each label: {counts}")
    table = Table(title=f"{result.rationales} rationales in {result.rows} rows", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("rows", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("first seen")
    for name, check in result.checks.items():
        place, text = check.examples[0] if check.examples else ("", "")
        seen = f"{place}: {' '.join(text.split())[:CUT]}" if place else ""
        table.add_row(name, str(check.count), f"{check.share:.1%}", seen)
    console.print(table)
    words = ", ".join(f"{name} {count:g}" for name, count in result.words.items())
    console.print(f"words in a rationale: {words}" if result.rationales else "No row has a rationale.")
    for count, text in result.repeated:
        console.print(f"{count} times: {text}")
    if result.agreement:
        low, high = result.agreement["interval"]
        share = f"{result.agreement['share']:.1%} ({low:.1%} to {high:.1%})"
        console.print(f"answers that are the label: {share} of {result.agreement['rows']} rows that have both")
    if shared is not None:
        console.print(f"held-out inputs that are also among these rows: {shared}")
    _print_probe(result, console)
    if output:
        console.print(f"figures {output}", soft_wrap=True)


def _print_probe(result: "Lint", console: Console) -> None:
    if result.probe is None:
        console.print(f"leak probe: none, {result.unprobed}")
        return
    probe = result.probe
    table = Table("leak probe", title=f"{probe.rows} rows, {probe.how}, fitted on {probe.fitted}", box=box.SIMPLE_HEAD)
    for name in ("accuracy", "95% interval"):
        table.add_column(name, justify="right")
    for name, score in (
        ("rationale alone", probe.rationale),
        ("input alone", probe.input),
        ("majority", probe.majority),
    ):
        table.add_row(name, *_figures(score))
    console.print(table)
    if probe.leak:
        console.print("The rationales tell the label: words alone find it better in them than in the input.")


def _figures(score: "Accuracy") -> tuple[str, str]:
    low, high = score.interval
    return f"{score.value:.1%}", f"{low:.1%} to {high:.1%}"
