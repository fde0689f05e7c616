"""Guides that lie side by side, each in a folder of its own, on one backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.model.aligned import AlignedModel
from dual_head.model.pretrained import load_tokenizer, loading_recorded, read_config, recorded_backbone


def load_collection(
    folders: Mapping[str, str],
    backbone: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> AlignedModel:
    """Attach the guide of every folder under its name, at a default strength of 0: none acts until it is asked to.

    folders: {name: folder}; backbone: the first guide's own where None; tokenizer: the one beside it where None;
    options: those of `from_backbone`. Errors: see `AlignedModel.attach`.
    """
    first = next(iter(folders.values()))
    config = read_config(first)
    place = str(backbone or recorded_backbone(config, first))
    with loading_recorded(backbone, first, place):
        tokenizer = tokenizer or load_tokenizer(place, options.get("trust_remote_code", False))
        model = AlignedModel.from_backbone(place, {}, fusion=config.fusion, tokenizer=tokenizer, **options)
    for name, folder in folders.items():
        model.attach(name, folder, alpha=0.0)
    return model
