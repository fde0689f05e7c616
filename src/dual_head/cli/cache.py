"""`dual-head cache`: keep what a frozen backbone computes of preference pairs, to train guides from.

Pairs are read as `dual-head train` reads them, with the same options. `--verify FOLDER` checks every file of a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from dual_head.cli.training import add_method_options, end_processes, method_for, with_method_options
from dual_head.errors import DualHeadError
from dual_head.methods import Method, method_names
from dual_head.options import Options, option
from dual_head.options.config_file import read_options
from dual_head.options.flags import OptionParser, before_parsing
from dual_head.train.feature_cache import verify
from dual_head.train.feature_cache.run import cache_features
from dual_head.train.options import CacheOptions


@dataclass(kw_only=True)
class Reader(Options):
    """The method that the cache is for, or a cache to verify."""

    method: str = option("dual_head", f"method to train from the cache: one of {', '.join(method_names())}")
    verify: str | None = option(
        None,
        "only check all files of a cache against their checksums; default: the one in --output_dir",
        nargs="?",
        const="",
        metavar="FOLDER",
    )


def run(arguments: Sequence[str]) -> int:
    """Parse, and write or verify."""
    recipe = method_for(_method_name(arguments), arguments)
    parser = build_parser(recipe)
    values = parser.namespace(arguments)
    if values.verify is not None:
        return _verify(values.verify or values.output_dir)
    options, _, method_options = parser.objects(values)
    cache_features(with_method_options(recipe, method_options), options)
    end_processes()
    return 0


def _method_name(arguments: Sequence[str]) -> str:
    """The method whose options are parsed: --method, or that of the file."""
    before = before_parsing(arguments, "method")
    config = read_options(Path(before.config), allow_code=before.allow_code) if before.config else {}
    return str(before.method or config.get("method") or Reader.method)


def _verify(folder: str | None) -> int:
    if not folder:
        raise DualHeadError("Name the cache to verify: --verify FOLDER.")
    print(f"'{folder}' is whole: {verify(folder)} files are what was written.")
    return 0


def build_parser(recipe: Method) -> OptionParser:
    """Make the parser: the options of a cache, and those of the method that say what its guides read."""
    parser = OptionParser(
        CacheOptions,
        Reader,
        command="cache",
        usage="--model_name_or_path M --dataset_name D --output_dir C [options]",
        description="Write the hidden states that a method's guides are trained from. It takes as long as one epoch "
        "streams through the backbone, so it pays from the second epoch or run on; for one, train without it.",
    )
    add_method_options(parser, recipe, section="guide.")  # no other option changes what is kept
    names = {f.name for f in fields(CacheOptions)}
    parser.set_defaults(**{key: value for key, value in recipe.run.items() if key in names})
    return parser
