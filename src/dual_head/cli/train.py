"""`dual-head train METHOD`: train a guide on preference pairs.

Every TrainingArguments flag is accepted, every option of the method, and the same names in a YAML file, where sections
("guide", "preference", ...) may hold the method's.
"""

from collections.abc import Sequence
from importlib import import_module

from dual_head.options import discover
from dual_head.options.flags import before_parsing
from dual_head.options.help import listed


def run(arguments: Sequence[str]) -> int:
    """Parse and train."""
    name = arguments[0] if arguments else "--help"
    if name.startswith("-"):
        print(f"usage: dual-head train METHOD [options]\n\nmethods:\n{_list('dual_head.methods', 'METHOD')}\n")
        print(f"kinds of guides:\n{_list('dual_head.guides', 'GUIDE')}\n")
        print("'dual-head train METHOD --help' lists the options.")
        return 0 if name in ("-h", "--help") else 2
    # Imported late: a list of names should not wait for torch.
    from dual_head.cli.training import build_parser, end_processes, method_for, with_method_options
    from dual_head.train.feature_cache.inputs import cached_options
    from dual_head.train.run import train_guide

    recipe = method_for(name, arguments[1:])
    parser = build_parser(recipe, help_all="--help_all" in arguments)
    parser.take_file(arguments[1:])
    if cache := before_parsing(arguments[1:], "feature_cache").feature_cache or parser.get_default("feature_cache"):
        # Its backbone and data are the defaults, below the file's, so that any other that is named is meant.
        parser.set_defaults(**cached_options(cache))
    if "--help_all" in arguments:
        parser.print_help()
        return 0
    options, training, method_options = parser.read(arguments[1:])
    train_guide(with_method_options(recipe, method_options), options, training)
    end_processes()
    return 0


def _list(package: str, attribute: str) -> str:
    """List the extensions of a package; it is imported, and torch with it, only where other distributions add some."""
    extensions = discover(package, attribute, noun=attribute.lower())
    if extensions.names() != [*extensions.files]:
        extensions = getattr(import_module(package), f"{attribute}S")  # it checks them
    return listed(extensions.summaries())
