"""A YAML file of options. It may come from elsewhere, so it runs no code without --allow_code."""

from pathlib import Path
from typing import Any

from dual_head.errors import DualHeadError
from dual_head.files.reading import read_yaml
from dual_head.options.texts import NO


def read_options(file: Path, *, allow_code: bool = False) -> dict[str, Any]:
    """Read a YAML file of options. Errors: unreadable, not a mapping, code named without `allow_code`."""
    values = read_yaml(file, "Give a YAML file of options and their values.") or {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DualHeadError(f"The config '{file}' must be a mapping of options to values.")
    if not allow_code:
        require_no_code(values, file)
    return values


def require_no_code(values: Any, file: Path, *, name: str = "") -> None:
    """Refuse options of a file that name Python code to run."""
    if isinstance(values, dict):
        for key, value in values.items():
            require_no_code(value, file, name=str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            require_no_code(value, file, name=name)
    elif is_code(name, str(values)):
        raise DualHeadError(
            f"'{file}' would run code here, by '{name}: {values}'. Read that code, and add --allow_code on the command "
            "line to run it."
        )


def is_code(name: str, value: str) -> bool:
    """Whether an option of this value runs Python code from outside this package."""
    if name == "judge":
        return value.startswith("rule:") and ":" in value.removeprefix("rule:")
    if name == "reward":
        return ":" in value and not Path(value).is_dir()
    return name in ("trust_remote_code", "allow_code") and value.lower() not in ("", "none", *NO)
