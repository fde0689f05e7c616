"""Options as fields of dataclasses: each declares its default, its help and its bounds.

max_new_tokens: int = option(128, "longest reply in tokens", heading="decoding", least=1)
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from dual_head.errors import DualHeadError

DTYPE_HELP = "auto (as stored, but float32 where the processor is slow in that), stored, float32, bfloat16 or float16"
OTHER_PRECISION_HELP = "take a backbone that is the one trained on in another precision, which is checked"
SAMPLING = "sampling, and nothing is sampled here. Add --temperature 1"  # why --top_p and --top_k are refused
LARGEST = 2**53  # whole numbers from here on are not exact in a float
BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def option(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """Declare an option; it is required if it has no default.

    least, most: bounds that are included; above, below: bounds that are not. heading: begins a group in --help of this
    field and those after it in its class. positional: no flag; flags: other spellings; repeat: each use of the flag
    adds a value; commas: a list in YAML is joined with commas; metavar, choices, nargs, const: argparse's.
    """
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Options:
    """Options of a command. Errors: a number that is not finite, or outside the bounds of its field."""

    def __post_init__(self) -> None:
        require_bounds(self)


def require_bounds(options: Any, *, prefix: str = "--") -> None:
    """Refuse numbers of a dataclass that are not finite, or outside the bounds of their fields.

    prefix: before a field's name in messages, "" where it is no flag.
    """
    for f in fields(options):
        value = getattr(options, f.name)
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                require_finite(number, f"{prefix}{f.name}")
                limits = {name: f.metadata[name] for name in BOUNDS if f.metadata.get(name) is not None}
                if not all(BOUNDS[name][1](number, limit) for name, limit in limits.items()):
                    words = " and ".join(f"{BOUNDS[name][0]} {limit:g}" for name, limit in limits.items())
                    raise DualHeadError(f"{prefix}{f.name} must be {words}, not {number}.")


def require_finite(number: float, name: str) -> None:
    """Refuse NaN, infinity, and whole numbers from 2^53 on."""
    if not (math.isfinite(number) if isinstance(number, float) else abs(number) < LARGEST):
        raise DualHeadError(f"{name} must be a finite number below 2^53, not {number}.")


def changed(options: Any) -> list[str]:
    """Name the fields of a dataclass that are not at their default, those without one among them."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(options)}
    return [name for name, default in defaults.items() if getattr(options, name) != default]


def require_effect(options: Any, *needs: tuple[Sequence[str], Any, str]) -> None:
    """Refuse options that would change nothing, by name and with the remedy.

    needs: (names of options, whether anything reads them, what they are of, why that is missing and what brings it).
    """
    names = changed(options)
    for owned, is_read, why in needs:
        idle = [f"--{name}" for name in names if name in owned]
        if idle and not is_read:
            verb, them = ("are", "them") if len(idle) > 1 else ("is", "it")
            raise DualHeadError(f"{', '.join(idle)} {verb} of {why}, or leave {them} out.")
