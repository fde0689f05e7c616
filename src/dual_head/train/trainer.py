"""Training a guide with transformers' Trainer: our loss, its everything else.

The model that the Trainer wraps (and DDP or FSDP wraps in turn) is `GuidedLoss`, whose forward is the whole
step from tokens to per-pair losses. Checkpoints hold the guides, the optimizer and the Trainer's state; a
run that was killed goes on from the last whole one. It knows methods and data sets only as values.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import LengthGroupedSampler

from dual_head.data.tokenize import pair_lengths
from dual_head.errors import DualHeadError, did_you_mean, require
from dual_head.files.reading import reading
from dual_head.methods import Method
from dual_head.methods.held_out import HeldOutTrainer
from dual_head.model.aligned import AlignedModel
from dual_head.options.fields import require_finite
from dual_head.train.feature_cache import FeatureSet
from dual_head.train.progress import brief
from dual_head.train.resume import Sealing, load_guides, save_guides
from dual_head.train.step import GuidedLoss

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb", "mlflow")  # each an extra of the same name


@dataclass
class GuideTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults that suit a small head on a frozen backbone."""

    _argument_group_name: ClassVar[str] = "training (transformers' TrainingArguments; --help_all shows every one)"

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to look at the held-out pairs: no, steps, epoch."}
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
        metadata={"help": "Order of the pairs: group_by_length (shuffled, with little padding), random, sequential."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every parameter of a guide takes part in every step."}
    )

    def __post_init__(self):
        # Without this transformers refuses bf16 where there is only a CPU, and torch warns about pinned memory.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        if self.eval_steps is not None and self.eval_strategy == "epoch":
            self.eval_strategy = "steps"
        require_possible(self)
        if self.neftune_noise_alpha is not None:
            raise DualHeadError("--neftune_noise_alpha adds noise to embeddings, which are frozen here. Leave it out.")
        self.report_to = trackers_of(self.report_to)
        with reading("These options cannot go together", "Change or leave out what is named."):
            super().__post_init__()
        one_device(self)


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


COUNTED = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
COUNTED += ("eval_accumulation_steps", "torch_empty_cache_steps", "dataloader_prefetch_factor")
COUNTED += ("ddp_bucket_cap_mb", "ddp_timeout")
LEAST = {**dict.fromkeys(COUNTED, 1), "max_steps": -1, "local_rank": -1}  # -1 stands for none; of all others 0
BELOW = {
    **dict.fromkeys(("seed", "data_seed"), 2**32),  # numpy's generators take no more
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), 1),
    "dataloader_num_workers": 1025,  # each is a process
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile


def trackers_of(said: str | Sequence[str] | None) -> list[str]:
    """Names of trackers from a list of them, or from names with commas between. Errors: one that nobody has."""
    listed = [said] if isinstance(said, str) else said or ["none"]
    names = list(dict.fromkeys(name.strip() for one in listed for name in str(one).split(",") if name.strip()))
    choices = ("all", "none", *INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in choices:
            raise DualHeadError(f"--report_to: there is no tracker '{name}'.{did_you_mean(name, choices)}")
        if name in choices[:2] and len(names) > 1:
            raise DualHeadError(f"--report_to: '{name}' stands alone, and there is {', '.join(names)}. Leave one out.")
    return names or ["none"]


def require_trackers(args: TrainingArguments) -> None:
    """Refuse a tracker whose package is not there, before anything is loaded."""
    available = (*get_available_reporting_integrations(), "azure_ml", "flyte")  # two that are not looked for there
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


class ByLength(LengthGroupedSampler):
    """transformers' sampler, whose order of an epoch depends on nothing but seed and epoch, so that runs resume."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    @classmethod
    def of(cls, args: TrainingArguments, lengths: list[int]) -> "ByLength":
        """Group all that one step of the optimizer sees, so that the order is the same however it is spread."""
        seed = args.seed if args.data_seed is None else args.data_seed
        at_once = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(at_once, lengths=lengths, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class GuideTrainer(HeldOutTrainer):
    """transformers' Trainer for one guide of an aligned model.

    A step is a mean over its pairs, in however many batches they come. Logs every term and metric by name, saves the
    guides only, and never pickles its arguments.
    """

    loss_is_scaled_for_ga = True  # compute_loss weighs a batch by its share of the step's pairs

    def __init__(
        self,
        model: AlignedModel,
        method: Method,
        args: TrainingArguments,
        *,
        train_dataset: Any,
        eval_dataset: Any = None,
        data_collator: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guide: str | None = None,
        budget: int | None = None,
    ):
        self.aligned, self.objectives = model, method.objectives
        _require_same(model, method, guide or method.name)
        self._of_steps: dict[str, list[tuple[float, Tensor]]] = defaultdict(list)  # a batch's share, and its mean
        # Of a peer's guide only the held-out pairs are seen here, once.
        pairs = eval_dataset or () if method.peer else train_dataset
        tokens = response_length(pairs) * (len(pairs) if method.peer else rows_seen(args, len(pairs)))
        self.loss = GuidedLoss(model, method, guide=guide or method.name, budget=budget, tokens=tokens)
        super().__init__(
            model=self.loss,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=tokenizer,
        )
        brief(self)
        self.add_callback(Sealing())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        lengths = dataset.pair_lengths() if isinstance(dataset, FeatureSet) else pair_lengths(dataset)
        return ByLength.of(self.args, lengths)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset)  # in the order given: each pair keeps its place in `held_out`

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Take a step; what nobody optimises is measured only where the step is logged."""
        step = self.state.global_step + 1
        often = int(self.state.logging_steps) if self.args.logging_strategy == "steps" else 1
        self.loss.looking = step == self.state.max_steps or step % max(1, often) == 0
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.loss.looking = True

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """How many pairs all batches of a step have; on every process as many, since accelerate fills them up."""
        del device
        return sum(_pairs_of(batch) for batch in batch_samples)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Take a batch's share of the step's loss and keep its metrics, on the device, for the next log."""
        share = _pairs_of(inputs) / int(num_items_in_batch) if num_items_in_batch else 1.0
        outputs = model(**inputs)
        loss = outputs.pop("loss") * share
        if model.training:
            for name, value in outputs.items():
                self._of_steps[name].append((share, value.mean()))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log, over all processes, to a training log."""
        last = "train_runtime" in logs  # a run shorter than logging_steps has no other log
        if ("loss" in logs or last) and self._of_steps:
            names = sorted(self._of_steps)
            means = torch.stack([_mean(self._of_steps[name]) for name in names])
            means = self.accelerator.reduce(means, reduction="mean").tolist()  # type: ignore[union-attr]
            logs = {**logs, **dict(zip(names, means, strict=True))}
            self._of_steps.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if self.args.should_save:  # transformers asks every process
            save_guides(self.aligned, self.processing_class, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        load_guides(self.aligned, resume_from_checkpoint)
        self.held_out = {}  # of other weights

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def rows_seen(args: TrainingArguments, count: int) -> float:
    """How many rows a process sees in a whole run on `count` of them."""
    if args.max_steps > 0:
        return args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    return args.num_train_epochs * count / args.world_size


def response_length(pairs: Any) -> float:
    """Tokens of both responses of a pair, averaged over the first thousand, or over all in a feature cache."""
    if isinstance(pairs, FeatureSet):
        return pairs.response_tokens() / max(1, len(pairs))
    few = [pairs[i] for i in range(min(1000, len(pairs)))]
    return sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in few) / max(1, len(few))


def _pairs_of(batch: Mapping[str, Any]) -> int:
    return len(batch["counts"]) // 2


def _mean(batches: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Mean over steps, each a mean over its pairs, from the shares and means of batches."""
    means = torch.stack([mean.float() for _, mean in batches])
    shares = torch.tensor([share for share, _ in batches], device=means.device)
    return (shares * means).sum() / shares.sum()


def _require_same(model: AlignedModel, method: Method, name: str) -> None:
    """Refuse to train a guide of one shape under the options of another."""
    if name not in model.guides:
        raise DualHeadError(f"The model has no guide '{name}'.{did_you_mean(name, model.guides)}")
    actual = {"guide": model.guide(name).config, "fusion": model.config.fusion}
    expected = {"guide": method.guide, "fusion": method.fusion}
    for part, value in expected.items():
        if actual[part] != value:
            raise DualHeadError(
                f"The method's {part} is {value} and the model's {actual[part]}. Build the model from the method: "
                f"AlignedModel.from_backbone(backbone, {{'{name}': method.guide}}, fusion=method.fusion)."
            )
