"""What options say of rows: which columns are what, and what the classes are called.

The same on the command line, in YAML and in Python. It knows options only, neither rows nor files.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dual_head.errors import DualHeadError

__all__ = ["columns_of", "labels_of"]


def columns_of(said: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Read {"input": "text", "label": "class"}, the same in JSON, or input=text,label=class. Errors: none of these.

    An input may be a list of columns. Which names there are on the left is for `load_examples` to say.
    """
    if said is None:
        return None
    found = _pairs(said) if isinstance(said, str) else said
    if not isinstance(found, Mapping) or not all(_column(column, key == "input") for key, column in found.items()):
        raise DualHeadError(
            "--columns says which columns are what: input=text,label=class, or in JSON "
            f'\'{{"input": ["title", "text"], "label": "class"}}\', not {said}.'
        )
    return dict(found)


def labels_of(said: str | Sequence[Any] | None) -> list[str] | None:
    """Read a list of names, the same in JSON, or names with commas between. Errors: none of these, truth values."""
    if said is None or (isinstance(said, str) and not said.strip()):
        return None
    given = _names(said) if isinstance(said, str) else said
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if any(isinstance(name, bool) for name in listed):
        raise DualHeadError(
            "A label is a truth value: YAML reads no, yes, on and off as such. Quote them: labels: ['no', 'yes']."
        )
    names = [str(name).strip() if isinstance(name, (str, int)) else "" for name in listed]
    if not isinstance(given, (list, tuple)) or not names or not all(names):
        raise DualHeadError(f'--labels names the classes: no,yes, or in JSON \'["no", "yes, really"]\', not {said}.')
    return names


def _pairs(said: str) -> Any:
    if said.lstrip().startswith("{"):
        return _json(said)
    pairs = [pair.partition("=") for pair in said.split(",")]
    found = {key.strip(): column.strip() for key, _, column in pairs}
    return found if len(found) == len(pairs) else None


def _names(said: str) -> Any:
    return _json(said) if said.lstrip().startswith("[") else said.split(",")


def _json(said: str) -> Any:
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


def _column(said: Any, several: bool) -> bool:
    """Whether this is the name of a column, or where there may be several the names of some."""
    if several and isinstance(said, (list, tuple)):
        return bool(said) and all(_column(name, False) for name in said)
    return isinstance(said, str) and bool(said)
