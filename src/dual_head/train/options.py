"""The options of a training run and of a feature cache: which backbone, which data, how long.

The same names on the command line, in YAML and here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_head.errors import DualHeadError
from dual_head.options import Options, option, require_effect


@dataclass
class SourceOptions(Options):
    """Which backbone and which data, for every command that runs pairs through a backbone."""

    # Typed as they are once they have been checked, or filled in from a feature cache.
    model_name_or_path: str = option(None, "Backbone: a folder, or a name on the hub.")
    dataset_name: str = option(None, "Preference data: a file, a folder, or a name on the hub.")
    dataset_split: str = option("train", "Split to train on; part of it is held out.")
    dataset_format: str = option("auto", "Format of the rows, told from the first ones by default.")
    data_dir: str | None = option(None, "Subfolder of a data set on the hub, as helpful-base in Anthropic/hh-rlhf.")
    objective: str | None = option(None, "Which preference, where the data hold several: helpful or harmless.")
    label_threshold: float | None = option(
        None, "Of single replies with a score: from which score on they are desirable."
    )
    held_out: float = option(0.05, "Share of prompts kept for evaluation.", least=0, below=1)
    max_pairs: int | None = option(None, "Read at most so many rows.", least=1)
    max_length: int = option(1024, "Longest prompt + response, in tokens; the backbone's context at most.", least=1)
    max_prompt_length: int | None = option(None, "Longest prompt in tokens; the left is cut.", least=1)
    truncate_responses: bool = option(False, "Cut long responses instead of dropping the pair.")
    tokenizer_name: str | None = option(None, "Tokenizer, if it is not beside the backbone.")
    device_map: str | None = option(None, "Where transformers places the backbone, as auto.")
    attn_implementation: str | None = option(None, "Attention of the backbone: sdpa, eager, flash_attention_2.")
    quantization: Literal["none", "4bit", "8bit", "int8"] = option(
        "none", "Load the backbone quantised: 4bit and 8bit by bitsandbytes, int8 (its weights alone) by torchao."
    )
    trust_remote_code: bool = option(False, "Run code that comes with the backbone or tokenizer.")

    def _require_source(self) -> None:
        for name, noun in (("model_name_or_path", "backbone"), ("dataset_name", "preference data")):
            if not getattr(self, name):
                raise DualHeadError(f"Say which {noun} with --{name}.")


@dataclass
class RunOptions(SourceOptions):
    """Which backbone, which data, how long; the same names on the command line and in YAML."""

    _argument_group_name: ClassVar[str] = "backbone and data"

    dtype: str = option("auto", "dtype of the backbone: auto, float32, bfloat16, float16.")
    feature_cache: str | None = option(
        None, "Train from the folder that 'dual-head cache' wrote; backbone and data are then those written there."
    )
    logits_budget_mb: int | None = option(
        None,
        "Memory for logits at a time, by default 7 bytes a weight of the lm_head; results do not depend on it.",
        least=1,
    )
    move_guides: str | None = option(
        None, "Guides trained on another backbone: move them to this one and train only the map in between."
    )
    vocab_map: bool = option(False, "With move_guides: match tokens of another tokenizer by their strings.")
    restart: bool = option(False, "Delete the checkpoints in output_dir instead of resuming from them.")

    def __post_init__(self):
        super().__post_init__()
        moves = "guides that move, and none move here. Add --move_guides"
        require_effect(self, (("vocab_map",), self.move_guides, moves))
        if not self.feature_cache:
            self._require_source()
        elif self.move_guides:
            raise DualHeadError("Moving guides needs the backbone itself: leave out --feature_cache or --move_guides.")


@dataclass
class CacheOptions(SourceOptions):
    """What to cache, and how."""

    _argument_group_name: ClassVar[str] = "backbone and data"

    output_dir: str = option(None, "Folder to write to; the same command goes on with one that was stopped.")
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = option(
        "auto", "How hidden states are stored, auto: as the backbone gives them; int8 has a scale for every token."
    )
    backbone_dtype: str = option("auto", "dtype of the backbone: auto, float32, bfloat16, float16.")
    pairs_per_shard: int = option(256, "Pairs in one file; what a killed command loses at most.", least=1)
    batch_tokens: int = option(8192, "Tokens in one forward, padding included; lower it when memory runs out.", least=1)
    restart: bool = option(False, "Delete the cache in output_dir instead of going on with it.")

    def __post_init__(self):
        super().__post_init__()
        self._require_source()
        if not self.output_dir:
            raise DualHeadError("Say where to write with --output_dir.")
