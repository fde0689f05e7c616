"""What the commands that train share about their flags: values from YAML, unknown ones, those nobody needs to see."""

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dual_head.commands.help import bounded
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.reading import read_yaml

NO = ("", "none", "false", "no", "f", "n", "0")  # what leaves a switch off


def hide_rare(parser: argparse.ArgumentParser, arguments: type, common: Collection[str], *, help_all: bool) -> None:
    """Keep those of TrainingArguments' more than hundred flags out of --help that most runs never see."""
    names = {f.name for f in dataclasses.fields(arguments)}
    for action in parser._actions:
        if action.dest in names:
            if action.dest not in common and not help_all:
                action.help = argparse.SUPPRESS
            elif action.help:
                action.help = " ".join(action.help.split()).split(". ")[0][:160]


def read_options(file: Path, *, allow_code: bool = False) -> dict[str, Any]:
    """Read a YAML file of options. Errors: unreadable, no mapping, one that names code without `allow_code`."""
    values = read_yaml(file, "It must be a YAML file of options and their values.") or {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DualHeadError(f"The config '{file}' must be a mapping of options to values.")
    if not allow_code:
        require_no_code(values, file)
    return values


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """Add the flag without which a file of options may name no code."""
    parser.add_argument(
        "--allow_code",
        action="store_true",
        help="run code that the YAML file names: a rule or reward module:function, or trust_remote_code",
    )


def require_no_code(values: Any, file: Path, *, name: str = "") -> None:
    """Refuse options, from a file that may be somebody else's, that name Python code to run."""
    if isinstance(values, dict):
        for key, value in values.items():
            require_no_code(value, file, name=str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            require_no_code(value, file, name=name)
    elif is_code(name, str(values)):
        raise DualHeadError(
            f"'{file}' would run code here, by '{name}: {values}'. Read that code, and add --allow_code on the command "
            "line to run it."
        )


def is_code(name: str, value: str) -> bool:
    """Whether an option of this value runs Python code that is not ours."""
    if name == "judge":
        return value.startswith("rule:") and ":" in value.removeprefix("rule:")
    if name == "reward":
        return ":" in value and not Path(value).is_dir()
    return name in ("trust_remote_code", "allow_code") and value.lower() not in NO


def checked(action: argparse.Action, value: Any, file: Path) -> Any:
    """Hold a YAML value to what the flag itself would accept; argparse does so for texts only."""
    if value is None or (isinstance(value, (list, dict)) and (action.nargs in ("+", "*") or isinstance(value, dict))):
        return value
    try:
        if isinstance(value, list):
            raise ValueError("not a list")
        typed = bounded(action.type(str(value)) if callable(action.type) else value)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise DualHeadError(f"'{action.dest}' in '{file}' cannot be {value!r}.") from error
    if action.choices is not None and typed not in action.choices:
        raise DualHeadError(f"'{action.dest}' in '{file}' must be one of {', '.join(map(str, action.choices))}.")
    return typed


def refuse_unknown(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuse flags nobody has, with the nearest that somebody has."""
    known = set(parser._option_string_actions)
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("--") and flag not in known:
            near = did_you_mean(flag, known) if len(flag) > 2 else ""
            raise DualHeadError(f"Unknown option '{flag}'.{near if 'Did you mean' in near else ' See --help.'}")
