"""`dual-head cache`: what a frozen backbone says about preference pairs, written once to train guides from.

Pairs are read as `dual-head train` reads them, with the same options. `--verify FOLDER` reads a cache through.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from accelerate import PartialState
from transformers import HfArgumentParser

from dual_head.commands.help import Help
from dual_head.commands.train import TrainingParser, add_method_options, with_method_options
from dual_head.errors import DualHeadError
from dual_head.features import verify
from dual_head.methods import Method, method, method_names
from dual_head.run_features import cache_features
from dual_head.run_options import CacheOptions


def run(arguments: Sequence[str]) -> int:
    """Parse, and write or verify."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--method", default="dual_head")
    chosen = method(before.parse_known_args(arguments)[0].method)
    parsed = _parser(chosen).parse_args(arguments)
    if parsed.verify is not None:
        return _verify(parsed.verify or parsed.output_dir)
    given = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(CacheOptions)}
    cache_features(with_method_options(chosen, parsed), CacheOptions(**given))
    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
    return 0


def _verify(folder: str | None) -> int:
    if not folder:
        raise DualHeadError("Say which cache to verify: --verify FOLDER.")
    print(f"'{folder}' is whole: {verify(folder)} files are what was written.")
    return 0


def _parser(chosen: Method) -> HfArgumentParser:
    parser = TrainingParser(
        CacheOptions,  # type: ignore[arg-type]
        prog="dual-head cache",
        usage="dual-head cache --model_name_or_path M --dataset_name D --output_dir C [options]",
        description="Write the hidden states that a method's guides are trained from. It takes as long as one epoch "
        "streams through the backbone, so it pays from the second epoch or run on; for one, train without it.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--method", default="dual_head", choices=method_names(), help="whose guides will read it")
    parser.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="FOLDER, or --output_dir: only compute all its checksums again",
    )
    add_method_options(parser, chosen, section="guide.")  # the others have no say in what is kept
    parser.set_defaults(**{key: value for key, value in chosen.run.items() if key in CacheOptions.__dataclass_fields__})
    return parser
