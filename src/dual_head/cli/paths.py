"""Paths on the command line that are not there, told before a command is imported, and torch with it."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from dual_head.data.sources import is_data_name, is_hub_name
from dual_head.errors import DualHeadError

# What is read from each: a folder or file, or else a name on the hub.
MODELS = ("--model_name_or_path", "--backbone", "--tokenizer", "--tokenizer_name")
DATA = ("--dataset_name", "--eval_dataset_name", "--dataset", "--source")
FILES = ("--config", "--feature_cache")


def require_paths(arguments: Sequence[str]) -> None:
    """Refuse a flag's path that is not there and can be no name on the hub."""
    for flag, value in _values(arguments):
        if flag not in (*MODELS, *DATA, *FILES) or Path(value).expanduser().exists():
            continue
        if flag in MODELS and not is_hub_name(value):
            raise DualHeadError(
                f"There is no folder '{value}' for {flag}. Give one that holds config.json, or a name on the hub, "
                "which is owner/name."
            )
        if flag in DATA and (not is_hub_name(value) or is_data_name(value)):
            raise DualHeadError(f"There is no file or folder '{value}'. Check the path; a hub name is owner/name.")
        if flag in FILES:
            raise DualHeadError(f"There is nothing at '{value}', which {flag} names. Check the path.")


def _values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and (value := value if equals else following):
            yield flag, value
