"""The flags of the commands that train, and how these commands end."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dual_head.options.config_file import read_options
from dual_head.options.flags import OptionParser, before_parsing
from dual_head.options.texts import yaml_text

if TYPE_CHECKING:
    from dual_head.methods import Method

OPTION = "option:"  # marks the method's own options in the parsed namespace
# Of TrainingArguments' more than hundred flags; --help_all shows the rest.
COMMON = ("output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size")
COMMON += ("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed")
COMMON += ("bf16", "activation_checkpointing", "logging_steps", "eval_strategy", "eval_steps", "save_steps")
COMMON += ("save_total_limit", "report_to", "resume_from_checkpoint", "push_to_hub")


def method_for(name: str, arguments: Sequence[str]) -> "Method":
    """The method, with the kind of guide that is named among the arguments or in their file: its options are parsed."""
    from dual_head.methods import method
    from dual_head.methods.base import KIND

    before = before_parsing(arguments, KIND)
    config = read_options(Path(before.config), allow_code=before.allow_code) if before.config else {}
    section = config.get("guide")
    in_file = config.get(KIND, section.get("kind") if isinstance(section, dict) else None)
    kind = getattr(before, KIND) or in_file
    return method(name).with_options({KIND: str(kind)} if kind else {})


def build_parser(recipe: "Method", *, help_all: bool = False) -> OptionParser:
    """Make the parser of one method: our options, the method's, and transformers' with the method's defaults."""
    from dual_head.methods import METHODS
    from dual_head.train.arguments import OF_FITS, GuideTrainingArguments
    from dual_head.train.options import RunOptions

    parser = OptionParser(
        RunOptions,
        GuideTrainingArguments,
        command=f"train {recipe.name}",
        usage="--model_name_or_path M --dataset_name D --output_dir O [options]",
        description=METHODS.description(recipe.name),
        constants={"method": recipe.name},
    )
    hide_rare(parser, GuideTrainingArguments, COMMON if recipe.fit is None else OF_FITS, help_all=help_all)
    add_method_options(parser, recipe)
    parser.set_defaults(**recipe.training, **recipe.run)
    return parser


def add_method_options(parser: argparse.ArgumentParser, recipe: "Method", *, section: str = "") -> None:
    """Add a flag for every option of the method, or of one section, under its path and the paper's symbols."""
    group = parser.add_argument_group(f"options of {recipe.name}")
    for path, value in recipe.options():
        if path.startswith(section):
            symbols = [symbol for symbol, target in recipe.symbols.items() if target == path]
            group.add_argument(
                *(f"--{flag}" for flag in (*symbols, path)),
                dest=OPTION + path,
                type=yaml_text,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=f"default: {value}",
            )


def with_method_options(recipe: "Method", values: argparse.Namespace) -> "Method":
    """Return the method with the options on the command line or in the file."""
    options = {key.removeprefix(OPTION): value for key, value in vars(values).items() if key.startswith(OPTION)}
    return recipe.with_options(options)


def hide_rare(
    parser: argparse.ArgumentParser, arguments: type, common: Sequence[str] = COMMON, *, help_all: bool
) -> None:
    """Add --help_all; without it, --help leaves out the rare flags of TrainingArguments."""
    names = {f.name for f in dataclasses.fields(arguments)}
    for action in parser._actions:
        if action.dest in names:
            if action.dest not in common and not help_all:
                action.help = argparse.SUPPRESS
            elif action.help:
                action.help = " ".join(action.help.split()).split(". ")[0][:160]
    parser.add_argument("--help_all", action="store_true", help="show every TrainingArguments flag too")


def end_processes() -> None:
    """End the processes of a run together: one that ends early would abort the others."""
    from accelerate import PartialState

    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
