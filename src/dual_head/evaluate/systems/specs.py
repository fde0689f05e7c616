"""Systems as they are written on the command line: name=PATH@ALPHA. Nothing is loaded."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dual_head.data.files import SUFFIXES
from dual_head.errors import DualHeadError

__all__ = ["BEST_OF", "ENDPOINT", "NO_FILES", "SystemSpec", "parse_systems", "read_strength"]

ENDPOINT = "openai:"  # begins the path of a model behind an endpoint
BEST_OF = "best_of:"
NO_FILES = (ENDPOINT, BEST_OF, "http://", "https://")  # begin what is no place of files

_SUFFIXES = (".gz", *SUFFIXES)
_FORM = (
    "A system is NAME=PATH, with commas between several; a strength follows as PATH@1.5, or as "
    "PATH@helpful:0.5+harmless:1 for guides by name. A model behind an endpoint is NAME=openai:MODEL@URL. "
    "The best of 8 samples by a reward is NAME=best_of:8:REWARD:of:PATH."
)


@dataclass(frozen=True)
class SystemSpec:
    """A system as it was written; alpha: a strength for all its guides, or by name, None for those of their config."""

    name: str
    path: str
    alpha: float | Mapping[str, float] | None = None


def parse_systems(texts: Sequence[str]) -> list[SystemSpec]:
    """Read NAME=PATH@ALPHA, repeated or with commas between; a bare PATH is named after its folder or file.

    Errors: no system, no path, two of one name, a name that is no file's name, an alpha that is no number.
    """
    parts = [part.strip() for text in texts for part in ([text] if Path(text).exists() else text.split(","))]
    specs = [_spec(part) for part in parts if part]
    if not specs:
        raise DualHeadError(f"There is no system. {_FORM}")
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise DualHeadError(f"Two systems are named '{name}'. Give each another name: NAME=PATH.")
    return specs


def _spec(text: str) -> SystemSpec:
    name, equals, place = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        name, place = "", text
    path, alpha = _strength(place.strip())
    if not path:
        raise DualHeadError(f"'{text}' names no path. {_FORM}")
    name = name.strip() or _name_of(path)
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise DualHeadError(f"'{name}' cannot be a system's name, which is a file's too. Use letters, digits, _ . + -")
    return SystemSpec(name, path, alpha)


def _name_of(path: str) -> str:
    if path.startswith(ENDPOINT):
        return path.removeprefix(ENDPOINT).partition("@")[0].rpartition("/")[2]
    place = Path(path).expanduser()
    name = (place.resolve() if place.exists() else place).name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _strength(place: str) -> tuple[str, float | dict[str, float] | None]:
    """Part a path from what follows its last "@", which may be a part of the path instead."""
    path, at, text = place.rpartition("@")
    if not at or "/" in text or Path(place).expanduser().exists():
        return place, None
    try:
        return path, read_strength(text)
    except DualHeadError as error:
        raise DualHeadError(f"'{text}' in '{place}' is not a strength ({error}). {_FORM}") from error


def read_strength(text: str | float | None) -> float | dict[str, float] | None:
    """Read 1.5, or helpful:0.5+harmless:1 for guides by name. Errors: any other text, a guide that is there twice."""
    if text is None:
        return None
    pairs = [part.partition(":") for part in str(text).split("+")] if ":" in str(text) else []
    try:
        if len({name.strip() for name, _, _ in pairs}) < len(pairs):
            raise ValueError("a guide is there twice")
        return {name.strip(): _number(value) for name, _, value in pairs} if pairs else _number(text)
    except ValueError as error:
        raise DualHeadError(str(error)) from error


def _number(text: str | float) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number
