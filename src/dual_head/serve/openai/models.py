"""The names that a server's model goes by, each with the strengths it stands for.

NAME          the guides' own default strengths
NAME:base     the backbone
NAME:GUIDE    one guide alone, at its default strength, or 1 where that is 0
NAME:PRESET   strengths of the file of presets
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.files.reading import read_yaml
from dual_head.serve.openai.alpha import Strength, alpha_json, read_alpha
from dual_head.serve.openai.errors import Refused

BASE = "base"
_PRESETS = "It must be a YAML file of names, each with a number or a mapping of guides to numbers."


def served_models(name: str, config: AlignedConfig, presets: Mapping[str, Any]) -> dict[str, dict[str, Strength]]:
    """Every name and its strengths, the default first; a preset of a guide that is detached is left out."""
    alpha = config.alpha or {}
    models: dict[str, dict[str, Strength]] = {name: dict(alpha)}
    if not alpha:
        return models
    models[f"{name}:{BASE}"] = dict.fromkeys(alpha, 0.0)
    for guide, strength in alpha.items():
        models[f"{name}:{guide}"] = {**dict.fromkeys(alpha, 0.0), guide: strength or 1.0}
    for preset, value in presets.items():
        if not isinstance(value, Mapping) or value.keys() <= alpha.keys():
            models[f"{name}:{preset}"] = read_alpha(value, config)
    return models


def require_names(config: AlignedConfig) -> None:
    """Refuse a guide that has the backbone's name."""
    if BASE in (config.guides or {}):
        raise DualHeadError(
            f"A guide is named '{BASE}', by which requests mean the backbone (MODEL:{BASE}). Give it another name: "
            f"dual-head compose NAME=FOLDER:{BASE} --output_dir NEW_FOLDER."
        )


def read_presets(file: str | Path, config: AlignedConfig) -> dict[str, Any]:
    """Read {preset: alpha} from a YAML file. Errors: no such file, a name that is taken, a strength that cannot be."""
    presets = read_yaml(file, _PRESETS)
    if not isinstance(presets, dict) or not all(isinstance(name, str) for name in presets):
        raise DualHeadError(f"'{file}' holds no presets. {_PRESETS}")
    for preset, value in presets.items():
        if preset in (BASE, *(config.alpha or {})):
            raise DualHeadError(f"The preset '{preset}' in '{file}' has the name of a model. Choose another name.")
        try:
            read_alpha(value, config)
        except Refused as error:
            raise DualHeadError(f"The preset '{preset}' in '{file}' cannot be: {error}") from error
    return presets


def model_card(
    model: str, alpha: Mapping[str, Strength], name: str, config: AlignedConfig, context: int, created: int
) -> dict[str, Any]:
    """One entry of /v1/models: OpenAI's fields, the strengths of this name, and every guide with its default."""
    entries = config.guides or {}  # which may be changing: what has both an entry and a strength is there
    guides = {
        guide: {"kind": entries[guide]["kind"], "alpha": default}
        for guide, default in (config.alpha or {}).items()
        if guide in entries
    }
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "dual-head",
        "parent": None if model == name else name,
        "max_model_len": context,
        "alpha": alpha_json(alpha),
        "guides": guides,
    }
