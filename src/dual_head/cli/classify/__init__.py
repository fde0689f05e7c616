"""`dual-head classify COMMAND`: train and use classifiers that learn from rationales and never write one."""

from collections.abc import Sequence

from dual_head.options import discover
from dual_head.options.help import listed

COMMANDS = discover(__name__, "run", noun="command of classify")


def run(arguments: Sequence[str]) -> int:
    """Run one of them."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(f"usage: dual-head classify COMMAND [options]\n\n{__doc__}\n")
        print(f"commands:\n{listed(COMMANDS.summaries())}\n\n'dual-head classify COMMAND --help' tells more.")
        return 0
    return COMMANDS.load(name)(arguments[1:])
