"""One file per command of `dual-head`; each has `run(arguments) -> exit code`. `entry` finds and calls them."""

from dual_head.cli.entry import COMMANDS, main

__all__ = ["COMMANDS", "main"]
