"""Missing paths on the command line, refused before a command and torch are imported."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from dual_head.data.sources import is_data_name, is_hub_name
from dual_head.errors import DualHeadError

# Flags of places to read: a folder or file, or a name on the hub.
MODELS = ("--model_name_or_path", "--backbone", "--tokenizer", "--tokenizer_name")
DATA = ("--dataset_name", "--eval_dataset_name", "--dataset", "--source")
FILES = ("--config", "--feature_cache", "--presets")


def require_paths(arguments: Sequence[str]) -> None:
    """Refuse a path that does not exist and cannot be a name on the hub."""
    for flag, value in _values(arguments):
        if flag not in (*MODELS, *DATA, *FILES) or Path(value).expanduser().exists():
            continue
        if flag in MODELS and not is_hub_name(value):
            raise DualHeadError(
                f"The folder '{value}' of {flag} does not exist. Give a folder with config.json, or a name on the hub "
                "(owner/name)."
            )
        if flag in DATA and (not is_hub_name(value) or is_data_name(value)):
            raise DualHeadError(f"'{value}' of {flag} does not exist. Check the path; a hub name is owner/name.")
        if flag in FILES:
            raise DualHeadError(f"'{value}' of {flag} does not exist. Check the path.")


def _values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and (value := value if equals else following):
            yield "--" + flag.removeprefix("--").replace("-", "_"), value
