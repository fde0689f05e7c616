"""What a run reads: tokenizer, pairs and backbone, from where the options say they are.

It knows nothing of training. `feature_cache.inputs` reads the same from a feature cache.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TorchAoConfig

from dual_head.backbone.load import load_backbone, load_context_length
from dual_head.data import RowReport, split_by_prompt
from dual_head.data.collate import PairCollator
from dual_head.data.load import load_feedback, load_pairs
from dual_head.data.tokenize import TokenizeOptions, longest_sequence, pair_lengths, tokenize_feedback, tokenize_pairs
from dual_head.errors import DualHeadError, require
from dual_head.methods import Method
from dual_head.model.aligned import AlignedModel
from dual_head.model.pretrained import load_tokenizer
from dual_head.train.options import RunOptions, SourceOptions


class StreamedInputs:
    """A run's inputs where its batches go through the backbone: tokenizer, pairs, and the whole backbone."""

    def __init__(self, method: Method, options: RunOptions):
        self.method, self.options = method, options
        self.drops: dict[str, RowReport] = {}

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The files that gave the pairs, by their digests."""
        return self.drops["rows"].sources

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that is named, or the one beside the backbone."""
        return load_tokenizer_of(self.options)

    def load_data(
        self, tokenizer: PreTrainedTokenizerBase, console: Console, *, progress: bool
    ) -> tuple[Any, Any, dict[str, RowReport]]:
        """The pairs to train on, those held out by length, and what became of the rows."""
        train_set, held_out, self.drops = load_data(self.method, self.options, tokenizer, console, progress=progress)
        return train_set, by_length(held_out), self.drops

    def load_lm(self) -> PreTrainedModel:
        """The backbone."""
        return load_lm(self.options, self.options.dtype)

    def collator(
        self, model: AlignedModel, guide: str, tokenizer: PreTrainedTokenizerBase, sets: Sequence[Any], console: Console
    ) -> PairCollator:
        """Lay out pairs with their prompt once, where backbone and guide keep the two responses apart."""
        pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        obstacle = model.why_no_shared_prompts([guide], max(longest_sequence(rows) for rows in sets if len(rows)))
        if obstacle:
            console.print(f"Prompts are run once for each response: {obstacle}.")
        return PairCollator(pad, share_prompt=obstacle is None)


def load_tokenizer_of(options: SourceOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is named, or the one beside the backbone."""
    return load_tokenizer(options.tokenizer_name or options.model_name_or_path, options.trust_remote_code)


def load_lm(options: SourceOptions, dtype: str) -> PreTrainedModel:
    """Load the backbone as the options say."""
    return load_backbone(
        options.model_name_or_path,
        dtype=dtype,
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        quantization_config=_quantization(options.quantization),
        trust_remote_code=options.trust_remote_code,
    )


def _quantization(name: str) -> Any:
    """What transformers quantises a backbone by: torchao on any processor, bitsandbytes where it has kernels."""
    if name == "none":
        return None
    if name == "int8":
        torchao: Any = require("torchao.quantization", "quantization")
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    require("bitsandbytes", "quantization")
    return BitsAndBytesConfig(load_in_4bit=name == "4bit", load_in_8bit=name == "8bit")


def load_data(
    method: Method, options: SourceOptions, tokenizer: PreTrainedTokenizerBase, console: Console, *, progress: bool
) -> tuple[Any, Any, dict[str, RowReport]]:
    """Read, split and tokenise: the pairs or replies to train on, those held out, and what became of the rows."""
    source: Any = {
        "split": options.dataset_split,
        "objective": options.objective,
        "data_dir": options.data_dir,
        "format": options.dataset_format,
        "max_rows": options.max_pairs,
    }
    single = method.learns_from == "feedback"
    pairs: Any
    if single:
        pairs, report = load_feedback(options.dataset_name, label_threshold=options.label_threshold, **source)
    elif options.label_threshold is not None:
        raise DualHeadError(
            f"'{method.name}' learns from pairs, and --label_threshold is for single replies with a score. "
            "Leave it out, or train kto."
        )
    else:
        pairs, report = load_pairs(options.dataset_name, **source)
    noun, nouns = ("reply", "replies") if single else ("pair", "pairs")
    tokenize: Any = tokenize_feedback if single else tokenize_pairs
    console.print(f"{options.dataset_name}\n{report.table()}")
    train_pairs, held_out_pairs = split_by_prompt(pairs, options.held_out)
    if not train_pairs:
        raise DualHeadError(f"No {noun} is left to train on. Lower --held_out, or give more data.")
    context = load_context_length(options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    lengths = TokenizeOptions(
        max_length=min(options.max_length, context or options.max_length),
        max_prompt_length=options.max_prompt_length,
        truncate_responses=options.truncate_responses,
    )
    train_set, tokens = tokenize(train_pairs, tokenizer, lengths, progress=progress)
    held_out: Any = []
    if held_out_pairs:
        try:
            held_out, held_out_tokens = tokenize(held_out_pairs, tokenizer, lengths, progress=False)
            tokens = tokens + held_out_tokens
        except DualHeadError:
            count = len(held_out_pairs)
            console.print(f"The {count} held-out {nouns} cannot be used after tokenising, so nothing is held out.")
    console.print(f"tokenised, at most {lengths.max_length} tokens\n{tokens.table()}")
    console.print(f"{len(train_set)} {nouns} to train on, {len(held_out)} held out by prompt.")
    if single:
        console.print(balance(train_set["label"]))
    return train_set, held_out, {"rows": report, "tokens": tokens}


def balance(labels: Sequence[bool]) -> str:
    """How many replies are desirable, and a weight with which both kinds count alike where they are uneven."""
    desirable = sum(labels)
    undesirable = len(labels) - desirable
    counts = f"{desirable} desirable, {undesirable} undesirable."
    few, many = sorted((desirable, undesirable))
    if not few:
        return f"{counts} All labels are equal, so nothing is told apart: give replies of both kinds."
    if many <= 1.5 * few:
        return counts
    name = "desirable_weight" if desirable < undesirable else "undesirable_weight"
    return f"{counts} --{name} {many / few:.2g} would count both kinds alike."


def by_length(rows: Any) -> Any:
    """Order held-out pairs by length, so that a batch pads little."""
    if not len(rows):
        return rows
    lengths = pair_lengths(rows)
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__))
