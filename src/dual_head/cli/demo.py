"""`dual-head demo`: train and try guides in a small world, offline, in under three minutes on two cores.

First a Dual-Head guide for the whole reward, at five strengths; then one guide for help and one against harm, mixed
while decoding. Needs no network: the backbone is shipped, and the exact reward is a rule.

With --real, two published guides on a real chat model, which is fetched once: six questions at four strengths, mixed,
and where the guides break, in two minutes. With --train, a guide of your own from that model's replies.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from dual_head.demo.options import DemoOptions, RealOptions
from dual_head.errors import DualHeadError
from dual_head.files.places import exclusive
from dual_head.options.flags import OptionParser

SHARED = ("output_dir", "seed")  # options of all demonstrations

build_parser = partial(OptionParser, DemoOptions, RealOptions, command="demo", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and demonstrate in a folder that is held."""
    options, real = build_parser().read(arguments)
    if real.real or real.train:
        _require_small_world(options)
    with exclusive(options.output_dir):
        # Imported late: a mistyped option should not wait for torch.
        if real.train:
            from dual_head.demo.own_guide import train_own

            train_own(real, options.output_dir, options.seed)
        elif real.real:
            from dual_head.demo.real import show_guides

            show_guides(real, options.output_dir, options.seed)
        else:
            from dual_head.demo.demonstration import demonstrate

            demonstrate(options)
    return 0


def _require_small_world(options: DemoOptions) -> None:
    """Refuse options of the small world beside a chat model, which would not read them."""
    usual = DemoOptions()
    for field in fields(options):
        if field.name not in SHARED and getattr(options, field.name) != getattr(usual, field.name):
            raise DualHeadError(
                f"--{field.name} is of the small world, and --real and --train do not read it. Leave it out."
            )
