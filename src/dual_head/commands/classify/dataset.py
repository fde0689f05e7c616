"""The options that say which rows are read, for the commands that read a data set and train nothing."""

import argparse
from typing import TYPE_CHECKING, Any

from dual_head.classify.formats_options import columns_of, labels_of
from dual_head.commands.help import at_least
from dual_head.errors import DualHeadError

if TYPE_CHECKING:
    from dual_head.classify.formats import Loaded


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add --dataset and what goes with it."""
    group = parser.add_argument_group("rows")
    group.add_argument("--dataset", required=True, help="a file, a folder, a name on the hub, or a task such as boolq")
    group.add_argument("--split", default="train", help="which split")
    group.add_argument("--data_dir", help="subfolder, or configuration of a data set on the hub")
    group.add_argument("--format", default="auto", help="format of the rows; default: told from the first ones")
    group.add_argument("--columns", help="which columns are what: input=text,label=class, or the same in JSON")
    group.add_argument("--template", help="how an input is written from columns: '{premise} Therefore {hypothesis}?'")
    group.add_argument("--labels", help="names of the classes in their order, with commas between, or a JSON list")
    group.add_argument("--explanation", default="1", help="which of a row's rationales, from 1, or all")
    group.add_argument("--multi_label", action="store_true", help="a row may have several labels")
    group.add_argument("--max_rows", type=at_least(1), help="read at most so many rows")


def load_dataset(args: argparse.Namespace, **changed: Any) -> "Loaded":
    """Read the rows that the options name; `changed` are other arguments of `load_examples`."""
    from dual_head.classify.formats import load_examples

    explanation = args.explanation if args.explanation == "all" else _number(args.explanation)
    said = {
        "name": args.dataset,
        "split": args.split,
        "data_dir": args.data_dir,
        "format": args.format,
        "columns": columns_of(args.columns),
        "template": args.template,
        "labels": labels_of(args.labels),
        "explanation": explanation,
        "multi_label": args.multi_label,
        "max_rows": args.max_rows,
    }
    return load_examples(**{**said, **changed})


def _number(text: str) -> int:
    if not text.isdecimal():
        raise DualHeadError(f"--explanation is a number from 1, or all, not '{text}'.")
    return int(text)
