"""Frozen dataclasses from plain values, with every mistake named: unknown keys, wrong types.

Guides, objectives and methods all read their options here, from YAML, JSON or the command line.
"""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from dual_head.console.secrets import MASK, is_secret
from dual_head.errors import DualHeadError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from plain values. Errors: unknown keys (the nearest is offered), missing ones, wrong types."""
    hints = typing.get_type_hints(cls)
    accepted = [f for f in fields(cls) if f.init]  # type: ignore[arg-type]
    names = [f.name for f in accepted]
    for key in values:
        if not names:
            raise DualHeadError(f"Unknown option '{key}': {cls.__name__} has no options. Leave it out.")
        if key not in names:
            raise DualHeadError(f"Unknown option '{key}' for {cls.__name__}.{did_you_mean(key, names)}")
    for name in (f.name for f in accepted if f.default is MISSING and f.default_factory is MISSING):
        if name not in values:
            raise DualHeadError(f"{cls.__name__} lacks '{name}'.")
    return cls(**{key: fit(value, hints[key], f"{cls.__name__}.{key}") for key, value in values.items()})


def fit(value: Any, hint: Any, name: str) -> Any:
    """Return `value` if it is of the hinted type (a whole number passes as a float). Errors: anything else."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return fit(value, option, name)
            except DualHeadError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        raise DualHeadError(f"{name} must be one of {', '.join(map(repr, arguments))}, not {value!r}.")
    elif origin is list:
        if isinstance(value, (list, tuple)):
            return [fit(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(value)]
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: fit(item, arguments[1], f"{name}['{key}']") for key, item in value.items()}
    elif hint is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 5e-5, without a point, as text
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif isinstance(value, bool):  # Python counts it among the ints
        if hint is bool:
            return value
    elif isinstance(value, hint):
        return value
    text = MASK if is_secret(name) else repr(value)
    raise DualHeadError(f"{name} must be {getattr(hint, '__name__', hint)}, not {text}.")
