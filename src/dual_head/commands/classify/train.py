"""`dual-head classify train`: from inputs, labels and rationales to a classifier.

Every TrainingArguments flag is accepted, and the same names in a YAML file; sections named model, data and training
only group them. The DHRD README's own names work too, on the command line and in the file.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from dual_head.classify.options import ClassifyOptions
from dual_head.classify.run import train_classifier
from dual_head.classify.training import ClassifierTrainingArguments
from dual_head.commands.flags import add_allow_code, checked, hide_rare, read_options, refuse_unknown
from dual_head.commands.help import Help
from dual_head.commands.train import COMMON, TrainingParser
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.seed_names import CLASSIFIERS, note

SECTIONS = ("model", "data", "training")
# Keys of the DHRD README's file, and the options that they stand for.
ALIASES = {name: alias.ours for name, alias in CLASSIFIERS.items()} | {"device": ("use_cpu",)}
AS_WRITTEN = ("labels", "columns")  # what YAML has more words for than a flag has is for the options to check
WITH_COMMAS = ("class_weights", "lora_targets")


def run(arguments: Sequence[str]) -> int:
    """Parse and train."""
    parser = build_parser(help_all="--help_all" in arguments)
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    options, training, _ = parsed(parser, arguments)
    train_classifier(options, training)
    # Processes that leave one by one, each with an open connection, abort those that are still there.
    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
    return 0


def parsed(
    parser: HfArgumentParser, arguments: Sequence[str]
) -> tuple[ClassifyOptions, ClassifierTrainingArguments, argparse.Namespace]:
    """Read flags, and the file of --config below them: our options, transformers', and what else the parser has."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    add_allow_code(before)
    said = before.parse_known_args(list(arguments))[0]
    if said.config:
        apply_config(parser, Path(said.config), allow_code=said.allow_code)
    refuse_unknown(parser, arguments)
    try:
        options, training, others = parser.parse_args_into_dataclasses(list(arguments))
    except ValueError as error:  # how TrainingArguments refuses a combination of flags
        raise DualHeadError(str(error)) from error
    _require_no_smoothing(training)
    return options, training, others


def build_parser(*, help_all: bool = False) -> HfArgumentParser:
    """Make the parser: our options, and transformers' with the paper's defaults."""
    parser = TrainingParser(
        (ClassifyOptions, ClassifierTrainingArguments),  # type: ignore[arg-type]
        prog="dual-head classify train",
        usage="dual-head classify train --model_name_or_path M --dataset_name D --output_dir O [options]",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    hide_rare(parser, ClassifierTrainingArguments, COMMON, help_all=help_all)
    where = "cpu, cuda or mps; default: the first accelerator, or else cpu"
    parser.add_argument("--device", action=_Device, default=argparse.SUPPRESS, help=where)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    add_allow_code(parser)
    parser.add_argument("--help_all", action="store_true", help="show every TrainingArguments flag too")
    parser.set_defaults(output_dir="outputs/dhrd")
    return parser


def apply_config(parser: HfArgumentParser, file: Path, *, allow_code: bool = False) -> None:
    """Take a YAML file's values as defaults, which flags override.

    Errors: unreadable, an unknown key (the nearest is offered), an option given twice, code that is named without
    `allow_code`.
    """
    flags = {action.dest: action for action in parser._actions}
    defaults: dict[str, Any] = {}
    said_as: dict[str, str] = {}
    for place, key, value in _entries(read_options(file, allow_code=allow_code), file):
        names = ALIASES.get(key, (key,))
        if not set(names) <= flags.keys():
            known = [*flags, *ALIASES, *SECTIONS]
            raise DualHeadError(f"Unknown key '{key}' in '{file}'.{did_you_mean(key, known)}")
        for name in names:
            if name in said_as:
                twice = f"as {said_as[name]} and as {place}"
                raise DualHeadError(f"The config '{file}' gives '{name}' twice, {twice}. Leave one out.")
            said_as[name] = place
            defaults[name] = _setting(flags[name], key, value, file)
    for action in parser._actions:
        if action.dest in defaults:
            action.required = False
    parser.set_defaults(**defaults)
    _note_spellings(file, tuple(said_as.items()))


@cache
def _note_spellings(file: Path, places: tuple[tuple[str, str], ...]) -> None:
    """Say once what of a file has another name here."""
    if others := [f"{place} is {name}" for name, place in places if place.rpartition(".")[2] != name]:
        note(f"in our spelling, of '{file}': {', '.join(others)}")


def _entries(values: dict[Any, Any], file: Path) -> Iterator[tuple[str, str, Any]]:
    """Every option as (where it stands, key, value), those of sections too. Errors: a section that is none."""
    for key, value in values.items():
        if key not in SECTIONS:
            yield str(key), str(key), value
        elif isinstance(value, dict):
            yield from ((f"{key}.{own}", str(own), said) for own, said in value.items())
        elif value is not None:
            raise DualHeadError(
                f"'{key}' in '{file}' groups options. Write them below it, each on a line of its own and indented."
            )


def _setting(action: argparse.Action, key: str, value: Any, file: Path) -> Any:
    """A YAML value as its flag has it. Errors: one that the flag would refuse."""
    if key == "device":
        return _is_cpu(str(value))
    if action.dest in AS_WRITTEN:
        return value
    listed = action.dest in WITH_COMMAS and isinstance(value, list)
    return checked(action, ",".join(map(str, value)) if listed else value, file)


def _is_cpu(device: str) -> bool:
    """Whether --device asks for the processor. Errors: no such device, or not the one that training will take."""
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise DualHeadError(
            f"There is no device '{device}'. Say --device cpu, or cuda or mps where there is one."
        ) from error
    if asked.type == "cpu":
        return True
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or asked.type != found.type:
        there = "cpu" if found is None else f"cpu and {found.type}"
        raise DualHeadError(
            f"There is no device '{device}' here: torch sees {there}. Say one of them, or leave it out."
        )
    if (asked.index or 0) >= torch.accelerator.device_count():
        raise DualHeadError(f"There is no device '{device}' here. Say --device {asked.type}, or leave it out.")
    if asked.index:
        raise DualHeadError(
            f"Training takes the first device that it sees, not '{device}'. Show it that one only: "
            f"CUDA_VISIBLE_DEVICES={asked.index} dual-head classify train ... --device {asked.type}."
        )
    return False


class _Device(argparse.Action):
    """Reads a device as what it says of use_cpu, which is all that transformers is told."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        del parser, option_string
        namespace.use_cpu = _is_cpu(values)


def _require_no_smoothing(training: ClassifierTrainingArguments) -> None:
    if training.label_smoothing_factor:  # transformers smooths in its own loss, and ours are the model's
        raise DualHeadError(
            "--label_smoothing_factor has no effect on a classifier's losses. Leave it out, or give shares as labels."
        )
