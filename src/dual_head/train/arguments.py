"""transformers' TrainingArguments with the defaults of a small head, checked before anything is loaded."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from dual_head.errors import DualHeadError, did_you_mean, require
from dual_head.files.reading import reading
from dual_head.losses import objective_names
from dual_head.options.fields import require_finite

logger = logging.getLogger(__name__)

# Of a guide that is computed in one pass, which has no steps.
OF_FITS = ("output_dir", "per_device_eval_batch_size", "seed", "disable_tqdm", "use_cpu", "log_level")
HIGHER = "gate_entropy"  # the only term whose logged value is not the loss, but what the loss makes larger
TRACKERS = ("tensorboard", "wandb", "mlflow")  # each an extra of the same name


@dataclass
class HeadTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults that guides and classifiers share."""

    _argument_group_name: ClassVar[str] = "training (transformers' TrainingArguments; --help_all shows every one)"

    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to evaluate on held-out data: no, steps, epoch."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log the loss terms every so many steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept: the last ones, the best one among them."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: our collator reads all columns."})
    report_to: str | list[str] = field(  # in this order, so that the flag takes several
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers to report to: tensorboard, wandb, mlflow, ..., several of them, all or none."},
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Order of the rows: group_by_length (shuffled, with little padding), random, sequential."},
    )

    def __post_init__(self):
        if self.remove_unused_columns:
            raise DualHeadError("--remove_unused_columns would remove the columns that are trained on. Leave it out.")
        # Without this transformers refuses bf16 where there is only a CPU, and torch warns about pinned memory.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        if self.eval_steps is not None and self.eval_strategy == "epoch":
            self.eval_strategy = "steps"
        require_possible(self)
        self.report_to = trackers_of(self.report_to)
        with reading("These options cannot go together", "Change or leave out what is named."):
            super().__post_init__()
        one_device(self)


@dataclass
class GuideTrainingArguments(HeadTrainingArguments):
    """The defaults that suit a small head on a frozen backbone."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every parameter of a guide takes part in every step."}
    )

    def __post_init__(self):
        if self.neftune_noise_alpha is not None:
            raise DualHeadError("--neftune_noise_alpha adds noise to embeddings, which are frozen here. Leave it out.")
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and metric in objective_names() and metric != HIGHER:
            self.greater_is_better = False  # transformers takes all for gains that are not named "loss"
        super().__post_init__()
        if self.label_smoothing_factor:  # transformers smooths in its own loss
            raise DualHeadError(
                "--label_smoothing_factor has no effect on the losses of guides. Leave it out, or smooth preferences "
                "with --preference.label_smoothing."
            )


def require_possible(args: TrainingArguments) -> None:
    """Refuse numbers out of range, which transformers would fail on, or ignore, after everything is loaded."""
    for f in fields(args):
        value = getattr(args, f.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            require_finite(value, f"--{f.name}")
            if value < (least := LEAST.get(f.name, 0)):
                raise DualHeadError(f"--{f.name} must be at least {least}, not {value}.")
            if value >= (end := BELOW.get(f.name, math.inf)):
                raise DualHeadError(f"--{f.name} must be below {end:,}, not {value}.")
    if args.torch_compile_mode not in (None, *COMPILE_MODES):
        raise DualHeadError(f"--torch_compile_mode: {did_you_mean(args.torch_compile_mode, COMPILE_MODES).strip()}")


# Least values, and values that are too large; -1 stands for none, of all others the least is 0.
COUNTED = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
COUNTED += ("eval_accumulation_steps", "torch_empty_cache_steps", "dataloader_prefetch_factor")
COUNTED += ("ddp_bucket_cap_mb", "ddp_timeout")
LEAST = {**dict.fromkeys(COUNTED, 1), "max_steps": -1, "local_rank": -1}
BELOW = {
    **dict.fromkeys(("seed", "data_seed"), 2**32),  # numpy's generators take no more
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), 1),
    "dataloader_num_workers": 1025,  # each is a process
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile


def trackers_of(value: str | Sequence[str] | None) -> list[str]:
    """Names of trackers from a list of them, or from names with commas between. Errors: an unknown one."""
    entries = [value] if isinstance(value, str) else value or ["none"]
    names = list(dict.fromkeys(name.strip() for entry in entries for name in str(entry).split(",") if name.strip()))
    choices = ("all", "none", *INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in choices:
            raise DualHeadError(f"--report_to: unknown tracker '{name}'.{did_you_mean(name, choices)}")
        if name in choices[:2] and len(names) > 1:
            raise DualHeadError(f"--report_to: '{name}' stands alone, but {', '.join(names)} are named. Leave one out.")
    return names or ["none"]


def require_trackers(args: TrainingArguments) -> None:
    """Refuse a tracker whose package is not installed, before anything is loaded."""
    available = (*get_available_reporting_integrations(), "azure_ml", "flyte")  # not looked for there
    for tracker in args.report_to or ():
        if tracker in TRACKERS:
            package = require(tracker, tracker)
            if tracker == "mlflow" and args.process_index == 0:
                _require_store(package)
        elif tracker not in available:
            raise DualHeadError(f"--report_to: the package of '{tracker}' is not installed. Install it with pip.")


def _require_store(mlflow: Any) -> None:
    """Open the store that runs are written to, as transformers' callback will. Errors: it cannot be opened."""
    try:
        mlflow.MlflowClient()
    except mlflow.MlflowException as error:
        reason = str(error).strip().split(". ")[0]
        raise DualHeadError(
            f"--report_to mlflow: its store cannot be opened ({reason}). Name another: "
            "MLFLOW_TRACKING_URI=sqlite:///mlflow.db. A database needs more than mlflow-skinny: "
            "pip install 'dual-head[mlflow]'. Folders of files need MLFLOW_ALLOW_FILE_STORE=true."
        ) from error


def one_device(args: TrainingArguments) -> None:
    """Keep transformers from nn.DataParallel, which cuts every tensor of a batch by its first dimension."""
    if args.n_gpu > 1:
        logger.warning(
            "There are %d GPUs, and one process trains on one: 'accelerate launch -m dual_head ...' uses all.",
            args.n_gpu,
        )
    args._n_gpu = min(args.n_gpu, 1)
