"""Which models may judge: none that guided a system or is a part of it, for it would praise what it asked for.

Models are compared by their files, so that a copy in another folder is found too.
"""

from collections.abc import Sequence
from pathlib import Path

from dual_head.backbone.fingerprint import digest
from dual_head.errors import DualHeadError
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.systems.identity import made_of

KINDS = ("reward:", "lm:")
REMEDY = "Take a judge trained on other prompts, or add --force to use this one all the same."


def require_independent(systems: Sequence[System], judges: Sequence[str]) -> None:
    """Refuse judges and rewards, as "reward:PATH", "lm:PATH", "openai:MODEL" or PATH, that a system is made of."""
    for model in filter(None, map(_model, judges)):
        for system in systems:
            part = next((part for part in system.parts if _same(model, part)), None)
            if part is None:
                continue
            role = "the system" if part == system.path else "a part of"
            copy = "" if _place(model) == _place(part) else f", as it holds what '{part}' does"
            raise DualHeadError(
                f"'{model}' is {role} '{system.name}'{copy}, so it is not an independent judge of it. {REMEDY}"
            )


def _model(judge: str) -> str:
    """What stands behind the kind of a judge."""
    for kind in KINDS:
        judge = judge.removeprefix(kind)
    return judge


def _place(model: str) -> Path:
    return Path(model).expanduser().resolve()


def _same(model: str, part: str) -> bool:
    """Whether two are of one name, or folders that hold the same files."""
    if _place(model).is_dir() and _place(part).is_dir():
        return digest(made_of(model)) == digest(made_of(part))
    return model == part
