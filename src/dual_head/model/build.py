"""An aligned model from a backbone and guides: fresh ones, those of a checkpoint, or those moved from another backbone.

Functions of the class that is built. They know configs and files; how a model runs is elsewhere.
"""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.checkpoint import COPY, load_strictly, read_weights
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import tokenizer_fingerprint
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.files.reading import reading
from dual_head.guides import GuideConfig
from dual_head.model import pretrained
from dual_head.model.alpha import require_default
from dual_head.model.fusion import require_fusion
from dual_head.model.guide_set import entry_of, require_guide_name
from dual_head.model.switch import Move, move_guides

logger = logging.getLogger(__name__)


def fresh_model(
    cls: Any,
    backbone: str | Path | PreTrainedModel,
    guides: Mapping[str, GuideConfig],
    *,
    alpha: Mapping[str, float] | None,
    fusion: str,
    tokenizer: PreTrainedTokenizerBase | None,
    other_precision: bool,
    load: Mapping[str, Any],
) -> Any:
    """A `cls` with fresh guides, as `AlignedModel.from_backbone` has it."""
    require_fusion(fusion)
    for name in guides:
        require_guide_name(name)
    alphas = {**dict.fromkeys(guides, 1.0), **(alpha or {})}
    require_default(alphas, names=guides, fusion=fusion)
    decoder = Backbone(pretrained.load_lm(backbone, **load))
    reader = partial(_tokenizer_of, decoder, tokenizer)
    config = AlignedConfig(
        backbone_config=copy.deepcopy(decoder.config),
        backbone_name_or_path=pretrained.absolute(decoder.config._name_or_path),
        backbone_fingerprint=decoder.fingerprint().as_dict(),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer) if tokenizer else None,
        guides={name: entry_of(guide.with_tokenizer(reader), decoder.shape) for name, guide in guides.items()},
        alpha={name: float(value) for name, value in alphas.items()},
        fusion=fusion,
    )
    model = cls(config, decoder.lm)
    model._other_precision = other_precision
    if tokenizer is not None:
        model.require_same_tokenizer(tokenizer)
        model._tokenizer = tokenizer
    return model


def _tokenizer_of(backbone: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, or the one beside the backbone. Errors: there is none."""
    place = backbone.config._name_or_path
    if tokenizer := tokenizer or pretrained.find_tokenizer([place]):
        return tokenizer
    raise DualHeadError(
        f"A guide of prompts needs a tokenizer, and there is none at '{place}'. Pass tokenizer=..., or give its "
        "prompts as token ids."
    )


def stored_model(
    cls: Any,
    source: str,
    backbone: str | Path | PreTrainedModel | None,
    config: AlignedConfig | None,
    *,
    load: Mapping[str, Any],
    hub: Mapping[str, Any],
    moving: Mapping[str, Any] | None,
    other_precision: bool,
) -> Any:
    """A `cls` with the guides of the checkpoint `source`, as `AlignedModel.from_pretrained` has it.

    load: options of `load_backbone`; hub: those of the checkpoint's files; moving: those of `move_guides`, where guides
    may move to another backbone; other_precision: whether the backbone may be the same in another precision.
    """
    config = config or pretrained.read_config(source, **hub)
    place = backbone or pretrained.recorded_backbone(config, source)
    with pretrained.loading_recorded(backbone, source, place):
        lm = place if isinstance(place, nn.Module) else pretrained.load_lm(place, **load)
    building_errors = reading(f"Cannot build the guides of '{source}' from its config.json", COPY)
    if moving is not None and not pretrained.is_same_backbone(config, lm):
        weights = read_weights(source, **hub)
        with building_errors:
            move = move_guides(config, lm, (source, config.backbone_name_or_path), **moving)
            model = moved_model(cls, move, lm, weights)
        logger.warning("Moved the guides of '%s' to '%s': %s.", source, lm.config._name_or_path, move.comparison)
    else:
        with building_errors:
            model = cls(config, lm)
        pretrained.require_same_backbone(model.config, model.backbone, source, other_precision=other_precision)
        load_strictly(model.stored(), read_weights(source, **hub), source)
    if load.get("dtype", "auto") not in ("auto", "stored"):
        model.guides.to(model.dtype)
        model.transfers.to(model.dtype)
    model._source, model._other_precision = source, other_precision
    return model


def moved_model(cls: Any, move: Move, lm: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Any:
    """A `cls` that has these guides' tensors beside another backbone."""
    model = cls(move.config, lm)
    move.fill(model.stored(), tensors)
    model._tokenizer = move.tokenizer
    return model
