"""The kinds of system by name: each file that ends in `SYSTEM = ...`, and entry points of `dual_head.systems`.

A system is written NAME=PATH@ALPHA; the kind whose files are at a path says so itself.
"""

from typing import Any

from dual_head.evaluate.systems.base import LoadOptions, System, fits
from dual_head.evaluate.systems.specs import SystemSpec, parse_systems
from dual_head.options import discover

__all__ = ["SYSTEMS", "LoadOptions", "System", "SystemSpec", "fits", "open_system", "parse_systems"]


def _flaw(value: Any) -> str | None:
    is_system = isinstance(value, type) and issubclass(value, System)
    return None if is_system else "SYSTEM is not a subclass of dual_head.evaluate.systems.System"


SYSTEMS = discover(__name__, "SYSTEM", noun="kind of system", check=_flaw)


def open_system(spec: SystemSpec, **load: Any) -> System:
    """Find the system of a spec; its model is loaded when it is first asked. load: fields of `LoadOptions`.

    Errors: none there, a wrong alpha.
    """
    kinds = SYSTEMS.load_all().values()
    kind = next((kind for kind in kinds if kind.reads(spec.path)), None) or SYSTEMS.load("plain")
    return kind(spec, LoadOptions(**load))
