"""The guides by kind: each file here that ends in `GUIDE = ...`, and entry points of the group `dual_head.guides`."""

import inspect
from typing import Any

from dual_head.backbone.decoder import BackboneShape
from dual_head.guides.base import Guide, GuideConfig, States
from dual_head.options import discover

__all__ = ["Guide", "GuideConfig", "States", "build_guide", "guide_class", "kind_of", "kinds"]


def _flaw(guide: Any) -> str | None:
    if not (isinstance(guide, type) and issubclass(guide, Guide)):
        return "GUIDE must be a subclass of dual_head.guides.Guide"
    if guide.logit_delta is Guide.logit_delta and guide.hidden_delta is Guide.hidden_delta:
        return f"{guide.__name__} defines neither logit_delta nor hidden_delta"
    config = inspect.getattr_static(guide, "Config", None)
    if not (isinstance(config, type) and issubclass(config, GuideConfig)):
        return f"{guide.__name__}.Config must be a subclass of dual_head.guides.GuideConfig"
    return None


GUIDES = discover(__name__, "GUIDE", noun="kind of guide", check=_flaw)


def kinds() -> list[str]:
    """Name every kind of guide."""
    return GUIDES.names()


def guide_class(kind: str) -> type[Guide]:
    """Find a guide's class by its kind. Errors: an unknown kind (the nearest is offered), a broken one."""
    return GUIDES.load(kind)


def build_guide(entry: dict[str, Any], shape: BackboneShape) -> Guide:
    """Build a guide from its entry in a config: {"kind", "config", ...}."""
    cls = guide_class(entry["kind"])
    return cls(cls.Config.from_dict(entry["config"]), shape)


def kind_of(guide: Guide | GuideConfig) -> str:
    """Name the kind of a guide or of its config: the file that defines it."""
    return GUIDES.name_of(guide)
