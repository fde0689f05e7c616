"""What a cell of a row says besides texts: nothing, true or false, that a reply was cut.

Tables write all of it as text. It knows spellings, and neither columns nor formats.
"""

from typing import Any

from dual_head.errors import DualHeadError

BITS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}  # in lower case


def is_empty(value: Any) -> bool:
    """Whether a column says nothing of a row: null, NaN, or a table's empty cell."""
    return value is None or str(value).strip().lower() in ("", "nan")


def truth(value: Any, name: str) -> bool:
    """What a column says that is true or false, in any spelling of `BITS`; name: that of the column in the error."""
    bit = BITS.get(str(value).lower())
    if bit is None:
        raise DualHeadError(f"{name} must be true or false (or 1 or 0), not {value!r}. Correct or remove the row.")
    return bool(bit)


def was_cut(value: Any) -> bool:
    """Whether a reply with this in "cut" stopped at the limit of tokens; an empty cell says that it did not."""
    return not is_empty(value) and truth(value, '"cut"')
