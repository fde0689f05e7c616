"""`dual-head train METHOD`: from preference data and a backbone to a folder of guides.

Every TrainingArguments flag is accepted, every option of the method, and the same names in a YAML file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import HfArgumentParser

from dual_head.commands.flags import add_allow_code, checked, hide_rare, read_options, refuse_unknown
from dual_head.commands.help import Help, Parser
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.methods import Method, method, method_names
from dual_head.reading import yaml_value
from dual_head.run import RunOptions, train_guide
from dual_head.run_inputs import cached_options
from dual_head.training import GuideTrainingArguments

# Of TrainingArguments' more than hundred flags, those that most runs want to see; --help_all shows the rest.
COMMON = [
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "seed",
    "bf16",
    "activation_checkpointing",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "resume_from_checkpoint",
    "push_to_hub",
]
OPTION = "option:"  # marks the method's own options in the parsed namespace


def run(arguments: Sequence[str]) -> int:
    """Parse and train."""
    name = arguments[0] if arguments else "--help"
    if name.startswith("-"):
        print(f"usage: dual-head train METHOD [options]\n\nmethods: {', '.join(method_names())}\n")
        print("'dual-head train METHOD --help' lists the options.")
        return 0 if name in ("-h", "--help") else 2
    chosen = method(name)
    parser = build_parser(chosen, help_all="--help_all" in arguments)
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    before.add_argument("--feature_cache")
    add_allow_code(before)
    said = before.parse_known_args(arguments[1:])[0]
    if said.config:
        apply_config(parser, Path(said.config), chosen, allow_code=said.allow_code)
    if cache := said.feature_cache or parser.get_default("feature_cache"):
        # What its backbone and data are is the default, so that whatever else is said is known to be meant.
        parser.set_defaults(**cached_options(cache))
        if said.config:
            apply_config(parser, Path(said.config), chosen, allow_code=said.allow_code)
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    refuse_unknown(parser, arguments[1:])
    try:
        options, training, rest = parser.parse_args_into_dataclasses(list(arguments[1:]))
    except ValueError as error:  # how TrainingArguments refuses a combination of flags
        raise DualHeadError(str(error)) from error
    train_guide(with_method_options(chosen, rest), options, training)
    # Processes that leave one by one, each with an open connection, abort those that are still there.
    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
    return 0


class TrainingParser(Parser, HfArgumentParser):
    """transformers' parser of dataclasses, with our complaints."""


def build_parser(chosen: Method, *, help_all: bool = False) -> HfArgumentParser:
    """Make the parser of one method: our options, the method's, and transformers' with the method's defaults."""
    parser = TrainingParser(
        (RunOptions, GuideTrainingArguments),  # type: ignore[arg-type]
        prog=f"dual-head train {chosen.name}",
        usage=f"dual-head train {chosen.name} --model_name_or_path M --dataset_name D --output_dir O [options]",
        description=(sys.modules[type(chosen).__module__].__doc__ or "") and _first_paragraph(chosen),
        formatter_class=Help,
        allow_abbrev=False,
    )
    hide_rare(parser, GuideTrainingArguments, COMMON, help_all=help_all)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    add_allow_code(parser)
    parser.add_argument("--help_all", action="store_true", help="show every TrainingArguments flag too")
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
        if not path.startswith(section):
            continue
        flags = [f"--{flag}" for flag in (*symbols.get(path, []), path)]
        group.add_argument(
            *flags,
            dest=OPTION + path,
            type=_yaml,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"default: {value}",
        )


def with_method_options(chosen: Method, parsed: argparse.Namespace) -> Method:
    """Return the method with the options that were given."""
    given = {key.removeprefix(OPTION): value for key, value in vars(parsed).items() if key.startswith(OPTION)}
    return chosen.with_options(given)


def apply_config(parser: HfArgumentParser, file: Path, chosen: Method, *, allow_code: bool = False) -> None:
    """Take a YAML file's values as defaults, which flags override.

    Sections ("guide", "preference", ...) hold the method's options; everything else is a flag's name.
    Errors: an unreadable file, an unknown key (the nearest is offered), another method's config, code that is named
    without `allow_code`.
    """
    values = read_options(file, allow_code=allow_code)
    if values.pop("method", chosen.name) != chosen.name:
        raise DualHeadError(
            f"The config '{file}' is for another method. Run 'dual-head train' with the method it names."
        )
    flags = {action.dest: action for action in parser._actions if not action.dest.startswith(OPTION)}
    paths = {path for path, _ in chosen.options()}
    sections = {path.split(".")[0] for path in paths if "." in path}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        nested = (
            {f"{key}.{k}": v for k, v in value.items()} if key in sections and isinstance(value, dict) else {key: value}
        )
        for name, setting in nested.items():
            path = chosen.symbols.get(name, name)
            if path in paths:
                defaults[OPTION + path] = setting
            elif name in flags:
                defaults[name] = checked(flags[name], setting, file)
            else:
                known = [*flags, *paths, *chosen.symbols]
                raise DualHeadError(f"Unknown key '{name}' in '{file}'.{did_you_mean(name, known)}")
    for action in parser._actions:
        if action.dest in defaults:
            action.required = False
    parser.set_defaults(**defaults)


def _yaml(text: str) -> Any:
    try:
        return yaml_value(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}") from error


def _first_paragraph(chosen: Method) -> str:
    module = sys.modules[f"dual_head.methods.{chosen.name}"]
    return (module.__doc__ or "").split("\n\n")[0]
