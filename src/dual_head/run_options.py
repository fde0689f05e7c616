"""What a training run is told: which backbone, which data, how long; and what of it makes it that run.

The same names on the command line, in YAML and here. It knows values only.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from dual_head.errors import DualHeadError
from dual_head.methods import Method
from dual_head.training import GuideTrainingArguments

# What must not change between a killed run and the one that goes on with its checkpoints.
TRAINING_IDENTITY = (
    "seed",
    "data_seed",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "optim",
)
PLACEMENT = ("restart", "logits_budget_mb", "device_map", "attn_implementation")  # changes where, not what


def _option(default: Any, said: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": said}, **more)


@dataclass
class RunOptions:
    """Which backbone, which data, how long; the same names on the command line and in YAML."""

    _argument_group_name: ClassVar[str] = "backbone and data"

    model_name_or_path: str = field(metadata={"help": "Backbone: a folder, or a name on the hub."})
    dataset_name: str = field(metadata={"help": "Preference data: a file, a folder, or a name on the hub."})
    dataset_split: str = _option("train", "Split to train on; part of it is held out.")
    dataset_format: str = _option("auto", "Format of the rows, told from the first ones by default.")
    data_dir: str | None = _option(None, "Subfolder of a data set on the hub, as helpful-base in Anthropic/hh-rlhf.")
    objective: str | None = _option(None, "Which preference, where the data hold several: helpful or harmless.")
    held_out: float = _option(0.05, "Share of prompts kept for evaluation.")
    max_pairs: int | None = _option(None, "Read at most so many rows.")
    max_length: int = _option(1024, "Longest prompt + response, in tokens; the backbone's context at most.")
    max_prompt_length: int | None = _option(None, "Longest prompt in tokens; the left is cut.")
    truncate_responses: bool = _option(False, "Cut long responses instead of dropping the pair.")
    tokenizer_name: str | None = _option(None, "Tokenizer, if it is not beside the backbone.")
    dtype: str = _option("auto", "dtype of the backbone: auto, float32, bfloat16, float16.")
    device_map: str | None = _option(None, "Where transformers places the backbone, as auto.")
    attn_implementation: str | None = _option(None, "Attention of the backbone: sdpa, eager, flash_attention_2.")
    quantization: Literal["none", "4bit", "8bit"] = _option("none", "Load the backbone quantised by bitsandbytes.")
    trust_remote_code: bool = _option(False, "Run code that comes with the backbone or tokenizer.")
    logits_budget_mb: int = _option(128, "Memory for logits at a time; smaller is slower and never different.")
    move_guides: str | None = _option(
        None, "Guides trained on another backbone: move them to this one and train only the map in between."
    )
    vocab_map: bool = _option(False, "With move_guides: match tokens of another tokenizer by their strings.")
    restart: bool = _option(False, "Delete the checkpoints in output_dir instead of resuming from them.")

    def __post_init__(self):
        for name in ("max_pairs", "max_length", "max_prompt_length", "logits_budget_mb"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DualHeadError(f"--{name} must be at least 1, not {value}.")
        if not 0 <= self.held_out < 1:
            raise DualHeadError(f"--held_out is a share of prompts, at least 0 and below 1, not {self.held_out}.")


def identity_of(method: Method, options: RunOptions, args: GuideTrainingArguments) -> dict[str, Any]:
    """Collect what makes a run this run: a resumed one must agree on all of it."""
    said = {key: value for key, value in asdict(options).items() if key not in PLACEMENT}
    for key in ("model_name_or_path", "dataset_name", "tokenizer_name", "move_guides"):
        if said[key] and Path(said[key]).exists():
            said[key] = str(Path(said[key]).resolve())
    training = {key: str(getattr(args, key)) for key in TRAINING_IDENTITY}
    return json.loads(json.dumps({**method.as_dict(), **said, **training, "processes": args.world_size}))
