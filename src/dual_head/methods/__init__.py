"""The methods by name: each file here that sets `METHOD = Method(...)`, and entry points of `dual_head.methods`."""

from typing import Any

from dual_head.errors import DualHeadError
from dual_head.methods.base import Method
from dual_head.options import discover

__all__ = ["METHODS", "Method", "method", "method_names"]


def _flaw(value: Any) -> str | None:
    return None if isinstance(value, Method) else "METHOD must be a dual_head.Method"


METHODS = discover(__name__, "METHOD", noun="method", check=_flaw)
ALIASES = {"args": "reward", "args_reward": "reward"}


def method_names() -> list[str]:
    """Name every method."""
    return METHODS.names()


def method(name: str) -> Method:
    """Find a method by its name ("-" and "_" are one). Errors: an unknown or a broken one."""
    name = name.replace("-", "_")
    name = ALIASES.get(name, name)
    chosen: Method = METHODS.load(name)
    if chosen.name != name:
        raise DualHeadError(f"The method '{name}' is named '{chosen.name}' in its own file. Give it one name.")
    return chosen
