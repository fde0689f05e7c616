"""`dual-head demo`: train and try guides in a small world, offline, in under three minutes on two cores.

First a Dual-Head guide for the whole reward, at five strengths; then one guide for help and one against harm, mixed
while decoding. Needs no network: the backbone is shipped, and the exact reward is a rule.
"""

from collections.abc import Sequence
from functools import partial

from dual_head.demo.options import DemoOptions
from dual_head.files.places import exclusive
from dual_head.options.flags import OptionParser

build_parser = partial(OptionParser, DemoOptions, command="demo", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and demonstrate in a folder that is held."""
    (options,) = build_parser().read(arguments)
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.demo.demonstration import demonstrate

    with exclusive(options.output_dir):
        demonstrate(options)
    return 0
