"""Which models may judge: none that guided a system or is a part of it, for it would praise what it asked for.

Models are compared by their files, so that a copy in another folder is found too.
"""

from collections.abc import Sequence
from pathlib import Path

from dual_head.backbone.fingerprint import digest
from dual_head.errors import DualHeadError
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.systems.identity import made_of
from dual_head.model.pretrained import read_config

KINDS = ("reward:", "lm:")
REMEDY = "Take a judge trained on other prompts, or add --force to use this one all the same."


def require_independent(systems: Sequence[System], judges: Sequence[str]) -> None:
    """Refuse judges and rewards, as "reward:PATH", "lm:PATH", "openai:MODEL" or PATH, that a system is made of."""
    for system in systems:
        if system.path in judges:
            raise DualHeadError(
                f"'{system.path}' is the system '{system.name}', so it is not an independent judge. {REMEDY}"
            )
    folders = {place for judge in judges if (place := _folder(judge))}
    if not folders:
        return
    parts = {_name(place): (system.name, place) for system in systems for place in _parts_of(system)}
    for folder in folders:
        if _name(folder) in parts:
            system, place = parts[_name(folder)]
            copy = "" if folder.samefile(place) else f", as it holds what '{place}' does"
            raise DualHeadError(
                f"'{folder}' is a part of '{system}'{copy}, so it is not an independent judge of it. {REMEDY}"
            )


def _folder(judge: str) -> Path | None:
    """The folder of a judge; None for one that is no model in a folder."""
    for kind in KINDS:
        judge = judge.removeprefix(kind)
    return Path(judge).expanduser() if judge and Path(judge).expanduser().is_dir() else None


def _name(folder: Path) -> str:
    """The same for the same files."""
    return digest(made_of(str(folder)))


def _parts_of(system: System) -> list[Path]:
    """Folders of the system, of its backbone, and of the models that its guides read."""
    folder = Path(system.path).expanduser()
    if not folder.is_dir():
        return []
    try:
        config = read_config(str(folder))
    except DualHeadError:  # a plain model
        return [folder]
    guides = [entry["config"].get("model") for entry in (config.guides or {}).values()]
    names = [config.backbone_name_or_path, *guides]
    return [folder, *(Path(name) for name in names if name and Path(name).is_dir())]
