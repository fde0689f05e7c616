"""The guides of one backbone beside another: what moves, what cannot, and which token is which.

It knows configs, fingerprints and tokenizers; how a model runs is elsewhere.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.checkpoint import load_strictly
from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.backbone.fingerprint import tokenizer_fingerprint
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.guides import guide_class
from dual_head.model.guide_set import entry_of
from dual_head.model.pretrained import absolute, find_tokenizer
from dual_head.model.transfer import UNMAPPED
from dual_head.model.vocabulary import Comparison, compare_tokenizers, vocabulary_map

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """Guides beside another backbone: their config there, its tokenizer, and how that compares to the guides'.

    token_ids [V]: for each logit of the new backbone, the id of the same token in the guides' tokenizer, or -1.
    """

    config: AlignedConfig
    tokenizer: PreTrainedTokenizerBase
    comparison: Comparison
    token_ids: Tensor

    def fill(self, stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Copy the guides' tensors into those `stored` of the moved model, and map tokens where that is an option."""
        for name, entry in (self.config.guides or {}).items():
            if entry["vocab_map"]:
                last_map = tensors.get(f"{name}.transfer.vocab_map")  # of a guide that was moved before
                ids = self.token_ids if last_map is None else _chained(last_map, self.token_ids)
                stored[f"{name}.transfer.vocab_map"].copy_(ids)
        load_strictly(_without_transfers(stored), _without_transfers(tensors), "the guides' folder")


def move_guides(
    config: AlignedConfig,
    lm: PreTrainedModel,
    places: Sequence[str | None],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trained_tokenizer: PreTrainedTokenizerBase | None = None,
    vocab_map: bool = False,
    adapter: bool = False,
) -> Move:
    """Work out what the guides of `config` are beside another backbone.

    tokenizer, trained_tokenizer: the new backbone's and the guides', found beside it and at `places` where None.
    vocab_map, adapter: as in `AlignedModel.switch_backbone`. Errors: what cannot move, and why.
    """
    tokenizer, trained_tokenizer = _tokenizers(config, lm, tokenizer, trained_tokenizer, places)
    backbone, comparison = Backbone(lm), compare_tokenizers(trained_tokenizer, tokenizer)
    entries = moved_entries(config, backbone.shape, comparison, vocab_map=vocab_map, adapter=adapter)
    for name, entry in (config.guides or {}).items():
        if entry.get("adapter"):
            logger.warning("The adapter of '%s' was trained for the backbone it leaves, and stays behind.", name)
    for entry in entries.values():  # their texts by the new chat template
        guide = guide_class(entry["kind"]).Config.from_dict(entry["config"]).with_tokenizer(lambda: tokenizer)
        entry["config"] = guide.as_dict()
    new_config = copy.deepcopy(config)
    new_config.guides, new_config.backbone_config = entries, copy.deepcopy(backbone.config)
    new_config.backbone_name_or_path = absolute(backbone.config._name_or_path or None)
    new_config.backbone_fingerprint, new_config.backbone_probe = backbone.fingerprint().as_dict(), None
    new_config.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
    token_ids = vocabulary_map(trained_tokenizer, tokenizer, backbone.shape.vocab_size)
    return Move(new_config, tokenizer, comparison, token_ids)


def moved_entries(
    config: AlignedConfig,
    shape: BackboneShape,
    comparison: Comparison,
    *,
    vocab_map: bool = False,
    adapter: bool = False,
) -> dict[str, dict[str, Any]]:
    """The guides' entries beside a backbone of `shape`. Errors: what cannot move, and why."""
    if not comparison.same and not vocab_map:
        raise DualHeadError(
            f"The guides cannot move to this backbone: {comparison}. Use a backbone with their tokenizer, train them "
            "on this one, or map tokens by their strings with vocab_map (--vocab_map), which gives the others delta 0."
        )
    entries = {}
    for name, entry in (config.guides or {}).items():
        _require_movable(name, entry, shape, comparison, adapter=adapter)
        cls, trained_shape = guide_class(entry["kind"]), BackboneShape.from_dict(entry["shape"])
        guide_config = cls.Config.from_dict(entry["config"]).moved_from(config.backbone_name_or_path)
        # Of a backbone, a model that reads tokens knows the number of logits alone; a head was made for its old one.
        guide_shape = shape if cls.reads_tokens else trained_shape
        needs_map = not comparison.same or bool(entry.get("vocab_map"))
        entries[name] = {**entry_of(guide_config, guide_shape), "adapter": adapter, "vocab_map": needs_map}
    return entries


def _require_movable(
    name: str, entry: Mapping[str, Any], shape: BackboneShape, comparison: Comparison, *, adapter: bool
) -> None:
    cls, width = guide_class(entry["kind"]), BackboneShape.from_dict(entry["shape"]).hidden_size
    if (cls.space == "hidden" or cls.steers_layers) and width != shape.hidden_size:
        raise DualHeadError(
            f"The guide '{name}' edits hidden states of width {width}, and this backbone's are "
            f"{shape.hidden_size} wide, where its edits would mean nothing. Train it on this backbone."
        )
    if not comparison.same and cls.reads_tokens:
        raise DualHeadError(
            f"The guide '{name}' is a model that reads token ids, so a map of the vocabulary cannot move it to a "
            f"backbone with another tokenizer: {comparison}."
        )
    if adapter and (cls.reads_tokens or cls.space == "hidden"):
        raise DualHeadError(
            f"The guide '{name}' does not read pooled hidden states, so it has no use for an adapter. Leave it out."
        )


def _without_transfers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: x for key, x in tensors.items() if ".transfer." not in key}


def _chained(last_map: Tensor, ids: Tensor) -> Tensor:
    """Map new tokens to the last backbone's by `ids`, and those to the guide's own by `last_map`.

    ids [2, -1, 0] after last_map [7, 8, 9] is [9, -1, 7].
    """
    last_map = last_map.to(ids.device)
    has_token = (ids != UNMAPPED) & (ids < len(last_map))
    return torch.where(has_token, last_map[ids.clamp(0, len(last_map) - 1)], UNMAPPED)


def _tokenizers(
    config: AlignedConfig,
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    trained_tokenizer: PreTrainedTokenizerBase | None,
    places: Sequence[str | None],
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """The new backbone's tokenizer, and the one the guides were trained with, from the first place that has it."""
    tokenizer = tokenizer or _tokenizer_at([lm.config._name_or_path], "tokenizer")
    fingerprint = config.tokenizer_fingerprint
    if trained_tokenizer is None and fingerprint == tokenizer_fingerprint(tokenizer):
        trained_tokenizer = tokenizer
    trained_tokenizer = trained_tokenizer or _tokenizer_at(places, "trained_tokenizer", fingerprint)
    if fingerprint and tokenizer_fingerprint(trained_tokenizer) != fingerprint:
        raise DualHeadError("This trained_tokenizer is not the one the guides were trained with. Pass theirs.")
    return tokenizer, trained_tokenizer


def _tokenizer_at(
    places: Sequence[str | None], argument: str, fingerprint: str | None = None
) -> PreTrainedTokenizerBase:
    """Find a tokenizer. Errors: there is none, and the argument that takes one."""
    if tokenizer := find_tokenizer(places, fingerprint):
        return tokenizer
    problem = "the one the guides were trained with is not" if fingerprint else "there is none"
    raise DualHeadError(
        f"Cannot compare tokenizers: {problem} at {' or '.join(repr(place) for place in places)}. Pass {argument}=..."
    )
