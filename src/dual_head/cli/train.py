"""`dual-head train METHOD`: train a guide on preference pairs.

Every TrainingArguments flag is accepted, every option of the method, and the same names in a YAML file, where sections
("guide", "preference", ...) may hold the method's.
"""

import argparse
from collections.abc import Sequence

from dual_head.cli.training import end_processes, hide_rare
from dual_head.guides import GUIDES
from dual_head.methods import METHODS, Method, method
from dual_head.options.flags import OptionParser, before_parsing
from dual_head.options.help import listed
from dual_head.options.texts import yaml_text
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.feature_cache.inputs import cached_options
from dual_head.train.run import RunOptions, train_guide

OPTION = "option:"  # marks the method's own options in the parsed namespace


def run(arguments: Sequence[str]) -> int:
    """Parse and train."""
    name = arguments[0] if arguments else "--help"
    if name.startswith("-"):
        print(f"usage: dual-head train METHOD [options]\n\nmethods:\n{listed(METHODS.summaries())}\n")
        print(f"guides that they train:\n{listed(GUIDES.summaries())}\n")
        print("'dual-head train METHOD --help' lists the options.")
        return 0 if name in ("-h", "--help") else 2
    chosen = method(name)
    parser = build_parser(chosen, help_all="--help_all" in arguments)
    parser.take_file(arguments[1:])
    if cache := before_parsing(arguments[1:], "feature_cache").feature_cache or parser.get_default("feature_cache"):
        # Its backbone and data are the defaults, below the file's, so that any other that is named is meant.
        parser.set_defaults(**cached_options(cache))
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    options, training, rest = parser.read(arguments[1:])
    train_guide(with_method_options(chosen, rest), options, training)
    end_processes()
    return 0


def build_parser(chosen: Method, *, help_all: bool = False) -> OptionParser:
    """Make the parser of one method: our options, the method's, and transformers' with the method's defaults."""
    parser = OptionParser(
        RunOptions,
        GuideTrainingArguments,
        command=f"train {chosen.name}",
        usage="--model_name_or_path M --dataset_name D --output_dir O [options]",
        description=METHODS.description(chosen.name),
        constants={"method": chosen.name},
    )
    hide_rare(parser, GuideTrainingArguments, help_all=help_all)
    add_method_options(parser, chosen)
    parser.set_defaults(**chosen.training, **chosen.run)
    return parser


def add_method_options(parser: argparse.ArgumentParser, chosen: Method, *, section: str = "") -> None:
    """Add a flag for every option of the method, or of one section, under its path and the paper's symbols."""
    group = parser.add_argument_group(f"options of {chosen.name}")
    symbols: dict[str, list[str]] = {}
    for symbol, path in chosen.symbols.items():
        symbols.setdefault(path, []).append(symbol)
    for path, value in chosen.options():
        if path.startswith(section):
            group.add_argument(
                *(f"--{flag}" for flag in (*symbols.get(path, []), path)),
                dest=OPTION + path,
                type=yaml_text,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=f"default: {value}",
            )


def with_method_options(chosen: Method, parsed: argparse.Namespace) -> Method:
    """Return the method with the options that were given."""
    values = {key.removeprefix(OPTION): value for key, value in vars(parsed).items() if key.startswith(OPTION)}
    return chosen.with_options(values)
