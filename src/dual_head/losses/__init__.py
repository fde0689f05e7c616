"""The objectives, found by their file's name: every module here that ends in `OBJECTIVE = ...`."""

import importlib
import pkgutil

from dual_head.losses.base import Objective, Terms

__all__ = ["Objective", "Terms", "name_of", "objective_names"]


def objective_names() -> list[str]:
    """Name every objective there is: one per file beside base.py."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def objective_class(name: str) -> type[Objective]:
    """Find an objective's class by its file's name."""
    return importlib.import_module(f"{__name__}.{name}").OBJECTIVE


def name_of(objective: Objective) -> str:
    """Name an objective: the file it is defined in."""
    return type(objective).__module__.rsplit(".", 1)[-1]
