"""`python -m dual_head` is the command `dual-head`."""

import sys

from dual_head.cli import main

sys.exit(main())
