"""`python -m dual_head` is the command `dual-head`."""

import sys

from dual_head.cli.entry import start

sys.exit(start())
