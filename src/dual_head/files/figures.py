"""Figures of a run as JSON that any program reads."""

import json
import math
from collections.abc import Mapping
from typing import Any


def figures_json(figures: Any) -> str:
    """Indented JSON; NaN and infinity, which JSON does not have, are null."""
    return json.dumps(_finite(figures), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
