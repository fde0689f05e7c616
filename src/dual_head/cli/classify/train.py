"""`dual-head classify train`: train a classifier on inputs, labels and rationales.

Every TrainingArguments flag is accepted, and the same names in a YAML file; sections named model, data and training
only group them. The DHRD README's own names work too, on the command line and in the file.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from dual_head.classify.train.options import ClassifyOptions
from dual_head.classify.train.run import train_classifier
from dual_head.classify.train.trainer import ClassifierTrainingArguments
from dual_head.cli.training import end_processes, hide_rare
from dual_head.errors import DualHeadError
from dual_head.options.flags import OptionParser
from dual_head.seed_names import CLASSIFIERS

SECTIONS = ("model", "data", "training")
# Keys of the DHRD README's file, and the options that they stand for.
ALIASES = {name: alias.ours for name, alias in CLASSIFIERS.items()}


def run(arguments: Sequence[str]) -> int:
    """Parse and train."""
    parser = build_parser(help_all="--help_all" in arguments)
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    options, training, *_ = parser.read(arguments)
    train_classifier(options, training)
    end_processes()
    return 0


def build_parser(*more: type, help_all: bool = False, **wording: Any) -> OptionParser:
    """Make the parser: our options, transformers' with the paper's defaults, and those of `more` classes."""
    parser = OptionParser(
        ClassifyOptions,
        ClassifierTrainingArguments,
        *more,
        **{
            "command": "classify train",
            "usage": "--model_name_or_path M --dataset_name D --output_dir O [options]",
            "description": __doc__,
            **wording,
        },
        aliases=ALIASES,
        sections=SECTIONS,
    )
    hide_rare(parser, ClassifierTrainingArguments, help_all=help_all)
    where = "cpu, cuda or mps; default: the first accelerator, or else cpu"
    parser.add_argument("--device", dest="use_cpu", type=_is_cpu, default=argparse.SUPPRESS, help=where)
    parser.set_defaults(output_dir="outputs/dhrd")
    return parser


def _is_cpu(device: str) -> bool:
    """Whether --device asks for the processor. Errors: no such device, or not the one that training will take."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise DualHeadError(f"There is no device '{device}'. Say --device cpu, cuda or mps.") from error
    if kind == "cpu":
        return True
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or kind != accelerator.type:
        available = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise DualHeadError(
            f"There is no device '{device}' here: torch sees {available}. Say one of them, or leave it out."
        )
    if index >= torch.accelerator.device_count():
        raise DualHeadError(f"There is no device '{device}' here. Say --device {kind}, or leave it out.")
    if index:
        raise DualHeadError(
            f"Training takes the first device that it sees, not '{device}'. Show it that one only: "
            f"CUDA_VISIBLE_DEVICES={index} dual-head classify train ... --device {kind}."
        )
    return False
