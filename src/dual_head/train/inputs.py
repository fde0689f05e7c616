"""What a run reads: tokenizer, pairs and backbone, from where they are or from a feature cache of them.

It knows what the options of a run say, and nothing of training.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.fingerprint import digest, tokenizer_fingerprint
from dual_head.backbone.load import load_backbone, load_context_length
from dual_head.data import RowReport, split_by_prompt
from dual_head.data.formats import load_pairs
from dual_head.data.tokenize import TokenizeOptions, pair_lengths, tokenize_pairs
from dual_head.errors import DualHeadError, require
from dual_head.guides import build_guide
from dual_head.methods import Method
from dual_head.model.guide_set import entry_of
from dual_head.model.pretrained import load_tokenizer
from dual_head.train.feature_cache import FeatureCache, FeatureCollator, FeatureSet, Needs, load_head, needs_of
from dual_head.train.feature_cache.store import read_manifest
from dual_head.train.options import RunOptions, SourceOptions, source_of


def load_lm(options: SourceOptions, dtype: str) -> PreTrainedModel:
    """Load the backbone as the options say."""
    quantization = None
    if options.quantization != "none":
        require("bitsandbytes", "quantization")
        quantization = BitsAndBytesConfig(
            load_in_4bit=options.quantization == "4bit", load_in_8bit=options.quantization == "8bit"
        )
    return load_backbone(
        options.model_name_or_path,
        dtype=dtype,
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        quantization_config=quantization,
        trust_remote_code=options.trust_remote_code,
    )


def load_data(
    options: SourceOptions, tokenizer: PreTrainedTokenizerBase, console: Console, *, progress: bool
) -> tuple[Any, Any, dict[str, RowReport]]:
    """Read, split and tokenise: the pairs to train on, those held out, and what became of the rows."""
    pairs, drops = load_pairs(
        options.dataset_name,
        split=options.dataset_split,
        objective=options.objective,
        data_dir=options.data_dir,
        format=options.dataset_format,
        max_rows=options.max_pairs,
    )
    console.print(f"{options.dataset_name}\n{drops.table()}")
    kept, aside = split_by_prompt(pairs, options.held_out)
    if not kept:
        raise DualHeadError("No pair is left to train on. Lower --held_out, or give more data.")
    context = load_context_length(options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    lengths = TokenizeOptions(
        max_length=min(options.max_length, context or options.max_length),
        max_prompt_length=options.max_prompt_length,
        truncate_responses=options.truncate_responses,
    )
    train_set, dropped = tokenize_pairs(kept, tokenizer, lengths, progress=progress)
    held_out: Any = []
    if aside:
        try:
            held_out, more = tokenize_pairs(aside, tokenizer, lengths, progress=False)
            dropped = dropped + more
        except DualHeadError:
            console.print(f"None of the {len(aside)} held-out pairs can be used, so nothing is held out.")
    console.print(f"tokenised, at most {lengths.max_length} tokens\n{dropped.table()}")
    console.print(f"{len(train_set)} pairs to train on, {len(held_out)} held out by prompt.")
    return train_set, held_out, {"rows": drops, "tokens": dropped}


def by_length(rows: Any) -> Any:
    """Order held-out pairs by length, so that a batch pads little; their order means nothing."""
    if not len(rows):
        return rows
    lengths = pair_lengths(rows)
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__))


# ---- from a feature cache ----------------------------------------------------------------------------------


def needs_of_method(method: Method, shape: BackboneShape) -> Needs:
    """What a method's guides read of a backbone. Errors: a method that trains a language model."""
    if method.peer is not None:
        raise DualHeadError(
            f"'{method.name}' trains a language model, which reads token ids, so there is nothing to cache. "
            "Train it without a feature cache."
        )
    with torch.device("meta"):
        guides = {name: build_guide(entry_of(config, shape), shape) for name, config in method.guides().items()}
    return needs_of(guides)


def cached_options(folder: str | Path) -> dict[str, Any]:
    """The options a feature cache was written with, RunOptions(**these, feature_cache=...); none where none is."""
    manifest = read_manifest(folder)
    return {} if manifest is None else dict(manifest["options"])


class CachedInputs:
    """A run's inputs where they come from a feature cache: its options filled in, its pairs, its backbone's head."""

    def __init__(self, method: Method, options: RunOptions):
        assert options.feature_cache is not None
        self.cache = FeatureCache(options.feature_cache)
        self.cache.require_whole()
        _require_same(self.cache, options)
        self.options = dataclasses.replace(options, **self.cache.options)
        self.backbone = self.cache.manifest["backbone"]
        sizes = {f.name: self.backbone["fingerprint"][f.name] for f in dataclasses.fields(BackboneShape)}
        self.needs = needs_of_method(method, BackboneShape.from_dict(sizes))
        self.cache.require(self.needs, method.name)

    @property
    def collator(self) -> FeatureCollator:
        """What makes batches of the pairs."""
        return FeatureCollator(self.needs.positions)

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
        """The tokenizer beside the features, or the one asked for if its ids mean the same."""
        tokenizer = load_tokenizer(str(self.cache.folder), self.options.trust_remote_code)
        if tokenizer_fingerprint(tokenizer) != self.cache.manifest["tokenizer"]:
            raise DualHeadError(
                f"The tokenizer in '{self.cache.folder}' is not the one its features were made with. Copy it again, "
                "or run the same 'dual-head cache' command, which writes it."
            )
        return tokenizer

    def load_data(self, console: Console) -> tuple[FeatureSet, FeatureSet, dict[str, RowReport]]:
        """The pairs to train on, those held out by length, and what became of the rows."""
        dtype = getattr(torch, self.backbone["dtype"].removeprefix("torch."))
        train_set = self.cache.pairs("train", self.needs, dtype=dtype)
        held_out = self.cache.pairs("held_out", self.needs, dtype=dtype, by_length=True)
        console.print(f"{self.cache.folder}: {self.options.dataset_name} beside {self.options.model_name_or_path}")
        console.print(f"{len(train_set)} pairs to train on, {len(held_out)} held out by prompt.")
        return train_set, held_out, self.cache.drops

    def load_lm(self) -> PreTrainedModel:
        """What of the backbone is outside its decoder."""
        return load_head(
            self.cache.folder,
            name_or_path=self.options.model_name_or_path,
            trust_remote_code=self.options.trust_remote_code,
        )


def _require_same(cache: FeatureCache, options: RunOptions) -> None:
    """Refuse another backbone or other data than the cache was written from, where options say so."""
    recorded = cache.options
    now: Mapping[str, Any] = source_of(options)
    for name, there in recorded.items():
        left_out = now[name] is None and name in ("model_name_or_path", "dataset_name", "tokenizer_name")
        if now[name] != there and not left_out:
            raise DualHeadError(
                f"The feature cache '{cache.folder}' was written with other options ({name}: {there!r} there, "
                f"{now[name]!r} now). Leave out --{name} to train on what it holds, or write another with "
                "'dual-head cache'."
            )
    if options.dtype not in ("auto", cache.manifest["backbone"]["dtype"].removeprefix("torch.")):
        raise DualHeadError(
            f"The feature cache '{cache.folder}' was written by a backbone in {cache.manifest['backbone']['dtype']}, "
            f"not {options.dtype}. Leave out --dtype, or write another cache with --backbone_dtype {options.dtype}."
        )
