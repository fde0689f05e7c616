"""How the commands write their help."""

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from dual_head.terminal import shown

DTYPE_HELP = "auto (as stored, but float32 where the processor is slow in that), stored, float32, bfloat16 or float16"


LARGEST = 2**53


class Parser(argparse.ArgumentParser):
    """A parser of finite numbers, whose complaints, which repeat what was typed, show no secret."""

    def error(self, message: str) -> NoReturn:
        """Print a complaint, and leave with 2."""
        super().error(shown(message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # of "--flag=--", which argparse drops
            raise argparse.ArgumentError(action, "expects a value, not --")
        return super()._get_values(action, arg_strings)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        value = super()._get_value(action, arg_string)
        try:
            return bounded(value)
        except ValueError as error:
            raise argparse.ArgumentError(action, str(error)) from error


def bounded(value: Any) -> Any:
    """Return a flag's value. Errors: ValueError of a number that is not finite, or that no computer counts to."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not (math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST):
        raise ValueError(f"must be a finite number below 2^53, not {value}")
    return value


class Help(argparse.HelpFormatter):
    """Help that shows one spelling of each flag, and defaults that say something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags = [flag for flag in action.option_strings if "-" not in flag.removeprefix("--")]
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else "VALUE"
        bare = action.nargs in (0, "?")  # switches may be followed by true or false, and nobody does
        return ", ".join(flags or action.option_strings) + ("" if bare else f" {choices}")

    def _get_help_string(self, action: argparse.Action) -> str:
        said = (action.help or "").replace("%", "%%")
        silent = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [])
        shown = not silent and "default:" not in said
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{said} [{default}]" if shown else said


def at_least(least: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number of `kind` that is finite and at least `least`."""

    def number(text: str):
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    number.__name__ = kind.__name__
    return number
