"""What options say of rows: which columns are what, and what the classes are called.

The same on the command line, in YAML and in Python. It knows options only, neither rows nor files.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dual_head.errors import DualHeadError

__all__ = ["columns_of", "explanation_of", "labels_of"]


def columns_of(columns: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Read {"input": "text", "label": "class"}, the same in JSON, or input=text,label=class. Errors: none of these.

    An input may be a list of columns. Which names there are on the left is for `load_examples` to say.
    """
    if columns is None:
        return None
    pairs = _pairs(columns) if isinstance(columns, str) else columns
    if not isinstance(pairs, Mapping) or not all(_column(column, key == "input") for key, column in pairs.items()):
        raise DualHeadError(
            "--columns says which columns are what: input=text,label=class, or in JSON "
            f'\'{{"input": ["title", "text"], "label": "class"}}\', not {columns}.'
        )
    return dict(pairs)


def labels_of(labels: str | Sequence[Any] | None) -> list[str] | None:
    """Read a list of names, the same in JSON, or names with commas between. Errors: none of these, truth values."""
    if labels is None or (isinstance(labels, str) and not labels.strip()):
        return None
    parsed = _names(labels) if isinstance(labels, str) else labels
    listed = list(parsed) if isinstance(parsed, (list, tuple)) else [parsed]
    if any(isinstance(name, bool) for name in listed):
        raise DualHeadError(
            "A label is a truth value: YAML reads no, yes, on and off as such. Quote them: labels: ['no', 'yes']."
        )
    names = [str(name).strip() if isinstance(name, (str, int)) else "" for name in listed]
    if not isinstance(parsed, (list, tuple)) or not names or not all(names):
        raise DualHeadError(f'--labels names the classes: no,yes, or in JSON \'["no", "yes, really"]\', not {labels}.')
    return names


def explanation_of(option: str) -> int | Literal["all"]:
    """Read which of a row's rationales is taken. Errors: neither "all" nor a number from 1."""
    if option == "all":
        return "all"
    if not option.isdecimal() or not int(option):
        raise DualHeadError(f"--explanation is a number from 1, or all, not '{option}'.")
    return int(option)


def _pairs(option: str) -> Any:
    if option.lstrip().startswith("{"):
        return _json(option)
    pairs = [pair.partition("=") for pair in option.split(",")]
    columns = {key.strip(): column.strip() for key, _, column in pairs}
    return columns if len(columns) == len(pairs) else None


def _names(option: str) -> Any:
    return _json(option) if option.lstrip().startswith("[") else option.split(",")


def _json(option: str) -> Any:
    try:
        return json.loads(option)
    except (ValueError, RecursionError):
        return None


def _column(column: Any, several: bool) -> bool:
    """Whether this is the name of a column, or where there may be several the names of some."""
    if several and isinstance(column, (list, tuple)):
        return bool(column) and all(_column(name, False) for name in column)
    return isinstance(column, str) and bool(column)
