"""Training a guide with transformers' Trainer: our loss, its everything else.

The model that the Trainer wraps (and DDP or FSDP wraps in turn) is `GuidedLoss`, whose forward is the whole
step from tokens to per-pair losses. Checkpoints hold the guides, the optimizer and the Trainer's state; a
run that was killed goes on from the last whole one. It knows methods and data sets only as values.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.checkpoint import load_strictly, read_weights
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.methods import Method
from dual_head.model import AlignedModel
from dual_head.objectives import name_of
from dual_head.reductions import DEFAULT_BUDGET, Scored, reduce_tokens, response_tokens

logger = logging.getLogger(__name__)

# Written in this order by the Trainer, so a checkpoint with a readable last one is whole.
CHECKPOINT_FILES = (SAFE_WEIGHTS_NAME, "optimizer.pt", "scheduler.pt", TRAINER_STATE_NAME)


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
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: our collator reads all columns."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - as transformers has it
        default="none", metadata={"help": "Trackers to report to: tensorboard, wandb, mlflow, all or none."}
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
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise DualHeadError(f"--{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("learning_rate", "num_train_epochs", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DualHeadError(f"--{name} must be a finite number of at least 0, not {getattr(self, name)}.")
        super().__post_init__()


# What a person watches while it trains; trackers and the report get everything.
SHOWN = ("loss", "next_token", "preference", "accuracy", "gate", "kl", "learning_rate", "epoch")


def _shown(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    names = {f"{prefix}{name}": None for prefix in ("", "eval_", "train_") for name in SHOWN}
    return {name: value for name, value in (logs or {}).items() if name in names}


class BriefProgress(ProgressCallback):
    """transformers' progress bar, with the terms a person watches."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write one line."""
        super().on_log(args, state, control, logs=_shown(logs), **kwargs)


class BriefPrinter(PrinterCallback):
    """One line a log where there is no progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print one line."""
        super().on_log(args, state, control, logs=_shown(logs), **kwargs)


class GuidedLoss(nn.Module):
    """One training step as a module: a batch of pairs in, the loss and per-pair metrics out.

    L = sum_k weight_k mean_pairs loss_k. Only the guide named `guide` has gradients.
    """

    def __init__(self, model: AlignedModel, method: Method, *, guide: str, budget: int = DEFAULT_BUDGET):
        super().__init__()
        self.model = model
        self.method = method
        self.guide = guide
        self.budget = budget

    @property
    def config(self):
        """The model's configuration, where the Trainer looks for it."""
        return self.model.config

    def activation_checkpointing_enable(self, **_options: Any) -> None:
        """Do nothing: the backbone keeps no activations and the vocabulary part is recomputed anyway."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> dict[str, Tensor]:
        """Take input_ids, attention_mask, response_mask [2B, T]; give {"loss": [], metrics: [B]}."""
        guide = self.model.guide(self.guide)
        del attention_mask  # padding is on the right, where causal attention never looks back from
        encoded = self.model.encode(input_ids, guides=(self.guide,))
        tokens = response_tokens(encoded.hidden, encoded.states[self.guide], input_ids, response_mask)
        needs = {need for objective in self.method.objectives for need in objective.needs}
        trained = {need for objective in self.method.objectives if objective.weight for need in objective.needs}

        def head(hidden: Tensor, states: dict[str, Tensor]):
            base = self.model.backbone.logits(hidden)
            return base, guide.term(states, base, 1.0)

        values = reduce_tokens(
            tokens,
            head,
            needs,
            measured=frozenset(needs - trained),
            vocab_size=self.model.backbone.shape.vocab_size,
            fusion=self.model.config.fusion,
            budget=self.budget,
        )
        gate_logit = guide.gate_logit(tokens.states)
        if gate_logit is not None:
            values["gate_logit"] = gate_logit
        return self._combine(Scored(values, tokens.row, input_ids.shape[0] // 2))

    def _combine(self, scored: Scored) -> dict[str, Tensor]:
        loss = torch.zeros((), device=scored.row.device)
        metrics: dict[str, Tensor] = {}
        for objective in self.method.objectives:
            terms = objective(scored)
            metrics[name_of(objective)] = terms.loss.detach()
            metrics |= {name: value.detach() for name, value in terms.metrics.items()}
            if objective.weight:
                loss = loss + objective.weight * terms.loss.mean()
        return {"loss": loss, **metrics}


class GuideTrainer(Trainer):
    """transformers' Trainer for one guide of an aligned model.

    Logs every term and metric by name, saves the guides only, and never pickles its arguments.
    """

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
        budget: int = DEFAULT_BUDGET,
    ):
        self.aligned = model
        _require_same(model, method, guide or method.name)
        self.held_out: dict[str, Tensor] = {}  # metrics of every held-out pair, from the last evaluation
        self._sums: dict[str, dict[str, list[Tensor]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        super().__init__(
            model=GuidedLoss(model, method, guide=guide or method.name, budget=budget),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=tokenizer,
        )
        bar = self.pop_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        if bar is not None:
            self.add_callback(BriefPrinter if args.disable_tqdm else BriefProgress)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Take the loss from the step and keep its metrics, on the device, for the next log."""
        del num_items_in_batch  # every term is already a mean over pairs
        outputs = model(**inputs)
        loss = outputs.pop("loss")
        if model.training:
            for name, value in outputs.items():
                self._sums["train"][name].append(value.mean())
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate one batch of held-out pairs; every process's pairs are gathered, padding dropped."""
        del prediction_loss_only, ignore_keys
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        gathered = self.accelerator.gather_for_metrics(outputs)
        assert isinstance(gathered, dict)
        for name, value in gathered.items():
            self._sums["eval"][name].append(value)
        return loss.detach(), None, None

    def evaluation_loop(self, *args, **kwargs):
        """Run transformers' loop, then add the averages over all held-out pairs to its metrics."""
        self._sums["eval"].clear()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        self.held_out = {name: torch.cat(values).float().cpu() for name, values in self._sums["eval"].items()}
        metrics = output.metrics if output.metrics is not None else {}
        metrics.update({f"{prefix}_{name}": values.mean().item() for name, values in self.held_out.items()})
        return output

    def evaluate_once(self) -> dict[str, float]:
        """Evaluate, unless the last step already was: then return what it gave."""
        last = self.state.log_history[-2:] if self.state.log_history else []
        for row in last:
            if "eval_loss" in row and row["step"] == self.state.global_step and self.held_out:
                return {name: value for name, value in row.items() if name.startswith("eval_")}
        return self.evaluate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log, over all processes, to a training log."""
        last = "train_runtime" in logs  # a run shorter than logging_steps has no other log
        if ("loss" in logs or last) and (sums := self._sums["train"]):
            names = sorted(sums)
            means = torch.stack([torch.stack(sums[name]).float().mean() for name in names])
            means = self.accelerator.reduce(means, reduction="mean").tolist()  # type: ignore[union-attr]
            logs = {**logs, **dict(zip(names, means, strict=True))}
            sums.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if not all(parameter.isfinite().all() for parameter in self.aligned.guides.parameters()):
            raise DualHeadError(
                f"Training diverged: the guide holds NaN or infinity after step {self.state.global_step}, so nothing "
                "was saved. Lower --learning_rate or set --max_grad_norm, and run again."
            )
        self.aligned.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        self.load_guides(resume_from_checkpoint)

    def load_guides(self, folder: str | Path) -> None:
        """Load the guides' weights from a checkpoint of this run."""
        load_strictly(self.aligned.guides, read_weights(str(folder)), str(folder))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            self._load_from_checkpoint(best)


def _require_same(model: AlignedModel, method: Method, name: str) -> None:
    """Refuse to train a guide of one shape under the options of another."""
    if name not in model.guides:
        raise DualHeadError(f"The model has no guide '{name}'.{did_you_mean(name, model.guides)}")
    there = {"guide": model.guide(name).config, "fusion": model.config.fusion}
    wanted = {"guide": method.guide, "fusion": method.fusion}
    for part, value in wanted.items():
        if there[part] != value:
            raise DualHeadError(
                f"The method's {part} is {value} and the model's {there[part]}. Build the model from the method: "
                f"AlignedModel.from_backbone(backbone, {{'{name}': method.guide}}, fusion=method.fusion)."
            )


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Find the newest checkpoint that was written to its end; others are passed over, and never touched."""
    found = [p for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rsplit("-", 1)[1].isdigit()]
    for folder in sorted(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), reverse=True):
        if _is_whole(folder):
            return folder
        logger.warning("'%s' is not a whole checkpoint and is passed over.", folder)
    return None


def _is_whole(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in CHECKPOINT_FILES):
        return False
    try:
        json.loads((folder / CHECKPOINT_FILES[-1]).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return True


def is_finished(checkpoint: Path) -> bool:
    """Whether a whole checkpoint is its run's last one."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    return state["global_step"] >= state["max_steps"]


def check_same_run(recorded: Mapping[str, Any], wanted: Mapping[str, Any], output_dir: str) -> None:
    """Refuse to go on with another run's checkpoints, naming what differs."""
    changed = sorted(key for key in recorded.keys() | wanted.keys() if recorded.get(key) != wanted.get(key))
    if changed:
        said = "; ".join(f"{key}: {recorded.get(key)!r} there, {wanted.get(key)!r} now" for key in changed[:4])
        raise DualHeadError(
            f"'{output_dir}' holds checkpoints of a run with other options ({said}). "
            "Choose another --output_dir, or add --restart to delete them."
        )
