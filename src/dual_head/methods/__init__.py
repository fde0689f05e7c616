"""The methods, found by their file's name: every module here that ends in `METHOD = Method(...)`."""

import importlib
import pkgutil

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.methods.base import Method

__all__ = ["Method", "method", "method_names"]


def method_names() -> list[str]:
    """Name every method there is: one per file beside base.py."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


ALIASES = {"args": "reward", "args_reward": "reward"}


def method(name: str) -> Method:
    """Find a method by its name ("-" and "_" are one). Errors: an unknown one is refused with the nearest name."""
    name = name.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in method_names():
        raise DualHeadError(f"Unknown method '{name}'.{did_you_mean(name, method_names())}")
    return importlib.import_module(f"{__name__}.{name}").METHOD
