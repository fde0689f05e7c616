"""Texts of flags as the values that a field's type asks for."""

import argparse
import types
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from dual_head.errors import DualHeadError
from dual_head.files.reading import yaml_value

YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def flag_kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value of a flag (None where no text can be one), and whether there may be several values.

    int | None -> int        list[str] | None -> str, several        Milk | str -> Milk        dict | str | None -> str
    A text for a union with str and None stays a text: TrainingArguments parses it.
    """
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        typed = [part for part in parts if part is not str]
        hint = str if len(typed) < len(parts) < len(get_args(hint)) else typed[0]
    if get_origin(hint) is list:
        return flag_kind(get_args(hint)[0])[0], True
    if get_origin(hint) is dict or hint is dict:
        return dict, False
    scalar = isinstance(hint, type) and issubclass(hint, (bool, int, float, str, Path, Enum))
    return (hint if scalar or get_origin(hint) is Literal else None), False


def truth(text: str) -> bool:
    """Read yes or no in any of their words. Errors: another word."""
    if text.lower() in YES + NO:
        return text.lower() in YES
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")


def yaml_text(text: str) -> Any:
    """Read a value as YAML. Errors: a text that is not YAML."""
    try:
        return yaml_value(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}") from error


def converter(kind: Any) -> dict[str, Any]:
    """The settings by which argparse turns a text into a value of this type."""
    if kind is dict:
        return {"type": _mapping}
    if get_origin(kind) is Literal or issubclass(kind, Enum):
        choices = get_args(kind) or [member.value for member in kind]
        return {"type": lambda text: {str(choice): choice for choice in choices}.get(text, text), "choices": choices}
    return {"type": kind}


def _mapping(text: str) -> dict[str, Any]:
    value = yaml_text(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a mapping such as {{a: 1}}, not {text!r}")
    return value


def named_values(arguments: Sequence[str], flag: str = "--set") -> dict[str, Any]:
    """Read NAME=VALUE, ... as YAML values. Errors: one without an equals sign, or that is no YAML."""
    try:
        return {name: yaml_value(value) for name, value in (text.split("=", 1) for text in arguments)}
    except ValueError as error:
        raise DualHeadError(f"{flag} must be NAME=VALUE, not {' '.join(arguments)!r}.") from error


def parse_alpha(text: str | None) -> float | dict[str, float] | None:
    """Read "1.0" or "helpful=0.8,harmless=0.2". Errors: any other text, a guide that is named twice."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        pairs = [(name.strip(), float(value)) for name, value in (part.split("=") for part in text.split(","))]
    except ValueError as error:
        raise DualHeadError(f"alpha must be a number, or name=number,name=number, not '{text}'.") from error
    if len(dict(pairs)) < len(pairs):
        raise DualHeadError(f"alpha names a guide twice: '{text}'. Leave one out.")
    return dict(pairs)
