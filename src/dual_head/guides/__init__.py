"""The guides, found by their file's name: `kind` is the name of a module here that ends in `GUIDE = ...`."""

import importlib
import pkgutil
from typing import Any

from dual_head.backbone import BackboneShape
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.guides.base import Guide, GuideConfig, States, flatten, unflatten

__all__ = ["Guide", "GuideConfig", "States", "build_guide", "flatten", "guide_class", "kind_of", "kinds", "unflatten"]


def kinds() -> list[str]:
    """Name every kind of guide there is: one per file, beside what they are built from."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in ("base", "companion"))


def guide_class(kind: str) -> type[Guide]:
    """Find a guide's class by its kind. Errors: an unknown kind is refused with the nearest name."""
    if kind not in kinds():
        raise DualHeadError(f"Unknown kind of guide '{kind}'.{did_you_mean(kind, kinds())}")
    return importlib.import_module(f"{__name__}.{kind}").GUIDE


def build_guide(entry: dict[str, Any], shape: BackboneShape) -> Guide:
    """Build a guide from its entry in a config: {"kind", "config", ...}."""
    cls = guide_class(entry["kind"])
    return cls(cls.Config.from_dict(entry["config"]), shape)


def kind_of(guide: Guide | GuideConfig) -> str:
    """Name the kind of a guide or of its config: the file it is defined in."""
    return type(guide).__module__.rsplit(".", 1)[-1]
