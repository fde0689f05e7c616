"""The losses by name: each file here that ends in `OBJECTIVE = ...`, and entry points of `dual_head.losses`."""

from typing import Any

from dual_head.losses.base import Objective, Terms
from dual_head.options import discover

__all__ = ["Objective", "Terms", "name_of", "objective_class", "objective_names"]


def _flaw(loss: Any) -> str | None:
    if not (isinstance(loss, type) and issubclass(loss, Objective)):
        return "OBJECTIVE must be a subclass of dual_head.losses.Objective"
    missing = sorted(loss.__abstractmethods__)
    return f"{loss.__name__} does not define {', '.join(missing)}" if missing else None


LOSSES = discover(__name__, "OBJECTIVE", noun="loss", check=_flaw)


def objective_names() -> list[str]:
    """Name every loss."""
    return LOSSES.names()


def objective_class(name: str) -> type[Objective]:
    """Find a loss's class by its name. Errors: an unknown name (the nearest is offered), a broken one."""
    return LOSSES.load(name)


def name_of(objective: Objective) -> str:
    """Name a loss: the file that defines it."""
    return LOSSES.name_of(objective)
