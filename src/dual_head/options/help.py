"""How the commands write their help."""

import argparse
import textwrap
from collections.abc import Mapping

WIDTH = 110


class Help(argparse.HelpFormatter):
    """Help that shows one spelling of each flag, and defaults that say something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags = [flag for flag in action.option_strings if "-" not in flag.removeprefix("--")]
        value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar or "VALUE"
        switch = action.nargs == 0 or (action.nargs == "?" and action.metavar is None)  # it rarely takes true or false
        return ", ".join(flags or action.option_strings) + ("" if switch else f" {value}")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("%", "%%")
        silent = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [])
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return text if silent or "default:" in text else f"{text} [{default}]"


def listed(summaries: Mapping[str, str]) -> str:
    """Names with their summaries, one a line, wrapped to the width of the help."""
    width = max(map(len, summaries), default=0) + 4
    lines = (
        textwrap.fill(text, WIDTH, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width)
        for name, text in summaries.items()
    )
    return "\n".join(lines)
