"""Which guides an aligned model has, and on which backbone: attach, detach, switch_backbone.

It knows configs, fingerprints and tokenizers; how a model runs is elsewhere.
"""

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone import Backbone, BackboneShape, load_backbone
from dual_head.checkpoint import load_strictly, read_weights
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.fingerprint import tokenizer_fingerprint
from dual_head.guides import GuideConfig, build_guide, guide_class, kind_of
from dual_head.model.alpha import resolve_alpha
from dual_head.model.pretrained import find_tokenizer, read_config
from dual_head.transfer import UNMAPPED
from dual_head.vocabulary import Comparison, compare_tokenizers, vocabulary_map

if TYPE_CHECKING:
    from dual_head.model.aligned import AlignedModel

logger = logging.getLogger(__name__)


def require_guide_name(name: str) -> None:
    """Refuse what cannot name a guide."""
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise DualHeadError(f"'{name}' cannot name a guide. Use letters, digits and underscores.")


def entry_of(config: GuideConfig, shape: BackboneShape) -> dict[str, Any]:
    """Describe a fresh guide as config.json has it."""
    entry = {"kind": kind_of(config), "config": config.as_dict(), "shape": dataclasses.asdict(shape)}
    with torch.device("meta"):  # only to ask how many cache layers it needs
        return entry | {"cache_layers": build_guide(entry, shape).cache_layers}


class GuideComposition:
    """The part of `AlignedModel` that puts guides together."""

    def attach(
        self: "AlignedModel",  # type: ignore[misc]
        name: str,
        guide: GuideConfig | str | Path,
        *,
        source_name: str | None = None,
        alpha: float | None = None,
    ) -> None:
        """Add a guide under `name`: a fresh one from its config, or a trained one from a checkpoint's folder.

        source_name: which of the checkpoint's guides, where it holds several; alpha: default strength, that of
        the checkpoint (or 1) where not said. Errors: a name that is taken; another backbone, tokenizer or
        fusion than the guide was trained with.
        """
        require_guide_name(name)
        if name in self.guides:
            raise DualHeadError(f"There is a guide '{name}' already. Detach it first, or choose another name.")
        if isinstance(guide, GuideConfig):
            entry, tensors, strength, source = entry_of(guide, self.backbone.shape), None, 1.0, ""
        else:
            source = str(guide)
            config = read_config(source)
            self._require_fitting(config, source)
            chosen = _choose(config, source_name, source)
            entry, strength = (config.guides or {})[chosen], (config.alpha or {}).get(chosen, 1.0)
            prefix = f"{chosen}."
            weights = read_weights(source)
            tensors = {f"{name}.{key.removeprefix(prefix)}": x for key, x in weights.items() if key.startswith(prefix)}
        strength = strength if alpha is None else alpha
        if not isinstance(strength, (int, float)):
            raise DualHeadError(f"A default alpha is a number, not {strength}. Give schedules and rows to generate.")
        resolve_alpha(strength, defaults={name: 1.0}, rows=1, fusion=self.config.fusion)
        self._add_guide(name, entry)
        if tensors is not None:
            try:
                load_strictly({k: x for k, x in self.stored().items() if k.startswith(f"{name}.")}, tensors, source)
            except DualHeadError:
                self._remove_guide(name)
                raise
        # New dicts: the config may be shared with whoever made the model.
        self.config.guides = {**(self.config.guides or {}), name: entry}
        self.config.alpha = {**(self.config.alpha or {}), name: float(strength)}

    def detach(self: "AlignedModel", name: str) -> None:  # type: ignore[misc]
        """Remove a guide. Errors: an unknown name."""
        if name not in self.guides:
            raise DualHeadError(f"No guide is named '{name}'.{did_you_mean(name, self.guides)}")
        self._remove_guide(name)
        self.config.guides = {k: entry for k, entry in (self.config.guides or {}).items() if k != name}
        self.config.alpha = {k: value for k, value in (self.config.alpha or {}).items() if k != name}

    def _remove_guide(self: "AlignedModel", name: str) -> None:  # type: ignore[misc]
        del self.guides[name]
        if name in self.transfers:
            del self.transfers[name]

    def switch_backbone(
        self: "AlignedModel",  # type: ignore[misc]
        backbone: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        trained_tokenizer: PreTrainedTokenizerBase | None = None,
        vocab_map: bool = False,
        adapter: bool = False,
        **load: Any,
    ) -> Comparison:
        """Move all guides to another backbone, in place; returns how the tokenizers compare.

        Widths are pooled and layers matched by depth (`Transfer`); adapter: put a linear map there instead,
        which starts as that pooling and can be trained. tokenizer and trained_tokenizer: the new backbone's
        and the guides', loaded from where the backbones are when not given. vocab_map: where ids mean other
        tokens, map them by token string; unmapped tokens get delta 0. load: options of `load_backbone`.
        Errors: tokenizers that differ, with counts and examples; guides that cannot move.
        """
        lm = backbone if isinstance(backbone, nn.Module) else load_backbone(str(backbone), **load)
        places = (self.config.backbone_name_or_path,)
        here, there = _tokenizers(self.config, lm, tokenizer, trained_tokenizer, places)
        moved, found = self.moved(self.config, lm, self.stored(), here, there, vocab_map=vocab_map, adapter=adapter)
        self.backbone, self.guides, self.transfers = moved.backbone, moved.guides, moved.transfers
        self.config, self.generation_config = moved.config, moved.generation_config
        self._tokenizer = here
        return found

    @classmethod
    def load_moved(
        cls,
        config: AlignedConfig,
        lm: PreTrainedModel,
        tensors: Mapping[str, Tensor],
        source: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vocab_map: bool = False,
        adapter: bool = False,
    ) -> "AlignedModel":
        """Build the model that has the guides of `source` on another backbone than theirs; see `switch_backbone`."""
        here, there = _tokenizers(config, lm, tokenizer, None, (source, config.backbone_name_or_path))
        moved, found = cls.moved(config, lm, tensors, here, there, vocab_map=vocab_map, adapter=adapter)
        logger.warning("Moved the guides of '%s' to '%s': %s.", source, lm.config._name_or_path, found)
        return moved

    @classmethod
    def moved(
        cls,
        config: AlignedConfig,
        lm: PreTrainedModel,
        tensors: Mapping[str, Tensor],
        here: PreTrainedTokenizerBase,
        there: PreTrainedTokenizerBase,
        *,
        vocab_map: bool,
        adapter: bool,
    ) -> "tuple[AlignedModel, Comparison]":
        """Build the model that has these guides beside another backbone, whose tokenizer is `here`."""
        new, found = Backbone(lm), compare_tokenizers(there, here)
        entries = moved_entries(config, new.shape, found, vocab_map=vocab_map, adapter=adapter)
        name = new.config._name_or_path or None
        for guide, entry in (config.guides or {}).items():
            if entry.get("adapter"):
                logger.warning("The adapter of '%s' was trained for the backbone it leaves, and stays behind.", guide)
        config = copy.deepcopy(config)
        config.guides, config.backbone_config = entries, copy.deepcopy(new.config)
        config.backbone_name_or_path = absolute(name)
        config.backbone_fingerprint = new.fingerprint().as_dict()
        config.tokenizer_fingerprint = tokenizer_fingerprint(here)
        model = cls(config, lm)  # type: ignore[call-arg]
        model._tokenizer = here  # type: ignore[attr-defined]
        own = model.stored()  # type: ignore[attr-defined]
        ids = vocabulary_map(there, here, new.shape.vocab_size)
        for guide, entry in entries.items():
            if entry["vocab_map"]:
                before = tensors.get(f"{guide}.transfer.vocab_map")  # where the guide had been moved already
                own[f"{guide}.transfer.vocab_map"].copy_(ids if before is None else _chained(before, ids))
        kept = {key: x for key, x in own.items() if ".transfer." not in key}
        load_strictly(kept, {key: x for key, x in tensors.items() if ".transfer." not in key}, "the guides' folder")
        return model, found  # type: ignore[return-value]

    def _require_fitting(self: "AlignedModel", config: AlignedConfig, source: str) -> None:  # type: ignore[misc]
        if config.fusion != self.config.fusion:
            raise DualHeadError(
                f"The guides in '{source}' fuse {config.fusion}, this model {self.config.fusion}. "
                "Guides of one model fuse alike: train them with the same fusion."
            )
        own = self.config.tokenizer_fingerprint
        if own and config.tokenizer_fingerprint and own != config.tokenizer_fingerprint:
            raise DualHeadError(f"The guides in '{source}' were trained with another tokenizer than this model's.")
        self.require_same_backbone(source, config)


def moved_entries(
    config: AlignedConfig, shape: BackboneShape, found: Comparison, *, vocab_map: bool = False, adapter: bool = False
) -> dict[str, dict[str, Any]]:
    """The guides' entries beside a backbone of `shape`. Errors: what cannot move, and why."""
    if not found.same and not vocab_map:
        raise DualHeadError(
            f"The guides cannot move to this backbone: {found}. Use a backbone with their tokenizer, train them on "
            "this one, or map tokens by their strings with vocab_map (--vocab_map), which gives the others delta 0."
        )
    entries = {}
    for name, entry in (config.guides or {}).items():
        cls = guide_class(entry["kind"])
        trained = BackboneShape.from_dict(entry["shape"])
        if cls.space == "hidden" and trained.hidden_size != shape.hidden_size:
            raise DualHeadError(
                f"The guide '{name}' edits hidden states of width {trained.hidden_size}, and this backbone's are "
                f"{shape.hidden_size} wide: what it writes would mean nothing there. Train it on this backbone."
            )
        if not found.same and cls.reads_tokens:
            raise DualHeadError(
                f"The guide '{name}' is a model that reads token ids, so no map of the vocabulary can move it to a "
                f"backbone of another tokenizer: {found}."
            )
        if adapter and (cls.reads_tokens or cls.space == "hidden"):
            raise DualHeadError(f"The guide '{name}' reads no pooled hidden states, so it has no use for an adapter.")
        own = cls.Config.from_dict(entry["config"]).moved_from(config.backbone_name_or_path)
        # Of a backbone, a model that reads tokens knows the number of logits alone; a head was made for its old one.
        fits = dataclasses.asdict(shape if cls.reads_tokens else trained)
        mapped = not found.same or bool(entry.get("vocab_map"))
        moved = entry_of(own, BackboneShape(**fits))
        entries[name] = {**moved, "adapter": adapter, "vocab_map": mapped}
    return entries


def _chained(before: Tensor, ids: Tensor) -> Tensor:
    """Map new tokens to the last backbone's by `ids`, and those to the guide's own by `before`."""
    before = before.to(ids.device)
    known = (ids != UNMAPPED) & (ids < len(before))
    return torch.where(known, before[ids.clamp(0, len(before) - 1)], UNMAPPED)


def _choose(config: AlignedConfig, wanted: str | None, source: str) -> str:
    names = list(config.guides or {})
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        said = "holds several guides" if wanted is None else f"holds no guide '{wanted}'"
        raise DualHeadError(f"'{source}' {said}: say which with source_name ({', '.join(names)}).")
    return wanted


def absolute(name_or_path: str | None) -> str | None:
    """A local folder's full path, so that it is found from anywhere; a hub name as it is."""
    return str(Path(name_or_path).resolve()) if name_or_path and Path(name_or_path).is_dir() else name_or_path


def _tokenizers(
    config: AlignedConfig,
    lm: PreTrainedModel,
    here: PreTrainedTokenizerBase | None,
    there: PreTrainedTokenizerBase | None,
    places: Sequence[str | None],
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """The new backbone's tokenizer, and the one the guides were trained with, from the first place that has it."""
    here = here or _tokenizer_at([lm.config._name_or_path], "tokenizer")
    recorded = config.tokenizer_fingerprint
    if there is None and recorded == tokenizer_fingerprint(here):
        there = here
    there = there or _tokenizer_at(places, "trained_tokenizer", recorded)
    if recorded and tokenizer_fingerprint(there) != recorded:
        raise DualHeadError("This trained_tokenizer is not the one the guides were trained with. Pass theirs.")
    return here, there


def _tokenizer_at(
    places: Sequence[str | None], argument: str, fingerprint: str | None = None
) -> PreTrainedTokenizerBase:
    """Find a tokenizer, or say with which argument to give it."""
    if found := find_tokenizer(places, fingerprint):
        return found
    which = "the one the guides were trained with is not" if fingerprint else "there is none"
    raise DualHeadError(
        f"Cannot compare tokenizers: {which} at {' or '.join(repr(place) for place in places)}. Pass {argument}=..."
    )
