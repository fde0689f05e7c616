"""What a run reads where it trains from a feature cache: its options filled in, its pairs, the head of its backbone.

The same as `train.inputs` reads beside a backbone, and the only place here that knows methods.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.fingerprint import digest, tokenizer_fingerprint
from dual_head.errors import DualHeadError
from dual_head.guides import build_guide, guide_class, kind_of
from dual_head.methods import Method
from dual_head.model.guide_set import entry_of
from dual_head.model.pretrained import load_tokenizer
from dual_head.train.feature_cache import ALL, RESPONSE, FeatureCache, FeatureCollator, FeatureSet, Needs, load_head
from dual_head.train.feature_cache.store import read_manifest
from dual_head.train.identity import differences, source_of
from dual_head.train.options import RunOptions


def require_cacheable(method: Method) -> None:
    """Refuse a method whose guides read token ids, for which there are no features."""
    if method.peer is not None or any(guide_class(kind_of(x)).reads_tokens for x in method.guides().values()):
        raise DualHeadError(
            f"'{method.name}' runs a language model, which reads token ids, so there is nothing to cache. "
            "Train it without a feature cache."
        )


def needs_of(method: Method, shape: BackboneShape) -> Needs:
    """What a method's guides read of a backbone. Errors: a method that trains a language model."""
    require_cacheable(method)
    with torch.device("meta"):
        guides = [build_guide(entry_of(config, shape), shape) for config in method.guides().values()]
    layers = {i for guide in guides for i in guide.hidden_layers}
    return Needs(ALL if any(guide.cache_layers for guide in guides) else RESPONSE, tuple(sorted(layers)))


def cached_options(folder: str | Path) -> dict[str, Any]:
    """The options a feature cache was written with, RunOptions(**these, feature_cache=...); empty without a cache."""
    manifest = read_manifest(folder)
    return {} if manifest is None else dict(manifest["options"])


class CachedInputs:
    """A run's inputs where they come from a feature cache. Errors: a cache of other data, or without what is needed."""

    def __init__(self, method: Method, options: RunOptions):
        assert options.feature_cache is not None
        self.cache = FeatureCache(options.feature_cache)
        self.cache.require_whole()
        _require_same(self.cache, options)
        self.options = dataclasses.replace(options, **self.cache.options)
        self.backbone = self.cache.manifest["backbone"]
        sizes = {f.name: self.backbone["fingerprint"][f.name] for f in dataclasses.fields(BackboneShape)}
        self.needs = needs_of(method, BackboneShape.from_dict(sizes))
        self.cache.require(self.needs, method.name, learns_from=method.learns_from)

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """What the features were made of, by the digests of their shards' token ids."""
        return {
            f"{self.cache.folder.resolve()} [{part}]": {
                "rows": shards["pairs"],
                "digest": digest([[shard["data"] for shard in shards["shards"]]], 16),
            }
            for part, shards in self.cache.manifest["parts"].items()
        }

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside the features. Errors: its ids mean other tokens than those of the features."""
        tokenizer = load_tokenizer(str(self.cache.folder), self.options.trust_remote_code)
        if tokenizer_fingerprint(tokenizer) != self.cache.manifest["tokenizer"]:
            raise DualHeadError(
                f"The tokenizer in '{self.cache.folder}' is not the one its features were made with. Copy it again, "
                "or run the same 'dual-head cache' command, which writes it."
            )
        return tokenizer

    def load_data(self, _tokenizer: Any, console: Console, **_: Any) -> tuple[FeatureSet, FeatureSet, Any]:
        """The pairs to train on, those held out by length, and what became of the rows."""
        dtype = getattr(torch, self.backbone["dtype"].removeprefix("torch."))
        train_set = self.cache.pairs("train", self.needs, dtype=dtype)
        held_out = self.cache.pairs("held_out", self.needs, dtype=dtype, by_length=True)
        console.print(f"{self.cache.folder}: {self.options.dataset_name} beside {self.options.model_name_or_path}")
        nouns = "replies" if self.cache.learns_from == "feedback" else "pairs"
        console.print(f"{len(train_set)} {nouns} to train on, {len(held_out)} held out by prompt.")
        return train_set, held_out, self.cache.drops

    def load_lm(self) -> PreTrainedModel:
        """What of the backbone is outside its decoder."""
        return load_head(
            self.cache.folder,
            name_or_path=self.options.model_name_or_path,
            trust_remote_code=self.options.trust_remote_code,
        )

    def collator(self, *_: Any) -> FeatureCollator:
        """Make batches of what the guides need."""
        return FeatureCollator(self.needs.positions)


def _require_same(cache: FeatureCache, options: RunOptions) -> None:
    """Refuse another backbone or other data than the cache was written from, where options name one."""
    current = source_of(options)
    optional = [key for key in ("model_name_or_path", "dataset_name", "tokenizer_name") if current[key] is None]
    names = [name for name in cache.options if name not in optional]
    for change in differences(cache.options, current, names)[:1]:
        raise DualHeadError(
            f"The feature cache '{cache.folder}' was written with other options ({change}). Leave out "
            f"--{change.partition(':')[0]} to train on what it holds, or write another with 'dual-head cache'."
        )
    if options.dtype not in ("auto", cache.manifest["backbone"]["dtype"].removeprefix("torch.")):
        raise DualHeadError(
            f"The feature cache '{cache.folder}' was written by a backbone in {cache.manifest['backbone']['dtype']}, "
            f"not {options.dtype}. Leave out --dtype, or write another cache with --backbone_dtype {options.dtype}."
        )
