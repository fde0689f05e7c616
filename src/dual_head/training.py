"""Training a guide with transformers' Trainer: our loss, its everything else.

The model that the Trainer wraps (and DDP or FSDP wraps in turn) is `GuidedLoss`, whose forward is the whole
step from tokens to per-pair losses. Checkpoints hold the guides, the optimizer and the Trainer's state; a
run that was killed goes on from the last whole one. It knows methods and data sets only as values.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.guides import flatten, unflatten
from dual_head.methods import Method
from dual_head.methods.base import BASE_HEAD
from dual_head.model import AlignedModel
from dual_head.objectives import name_of
from dual_head.progress import brief
from dual_head.reductions import DEFAULT_BUDGET, Scored, reduce_tokens, response_tokens
from dual_head.resume import load_guides, save_guides


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


class GuidedLoss(nn.Module):
    """One training step as a module: a batch of pairs in, the loss and per-pair metrics out.

    L = sum_k weight_k mean_pairs loss_k. Only the guide named `guide` has gradients, and the base head where the
    method trains one.
    """

    def __init__(self, model: AlignedModel, method: Method, *, guide: str, budget: int = DEFAULT_BUDGET):
        super().__init__()
        self.model = model
        self.method = method
        self.guide = guide
        self.names = (guide, BASE_HEAD) if method.train_base_head else (guide,)
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
        if not guide.trainable:
            raise DualHeadError(
                f"The guide '{self.guide}' only acts during decoding, so no objective can train it. "
                "Train what it is made of (for a reward model: 'dual-head train reward')."
            )
        del attention_mask  # padding is on the right, where causal attention never looks back from
        encoded = self.model.encode(input_ids, guides=self.names)
        tokens = response_tokens(encoded.hidden, flatten(encoded.states), input_ids, response_mask)
        needs = {need for objective in self.method.objectives for need in objective.needs}
        trained = {need for objective in self.method.objectives if objective.weight for need in objective.needs}

        values = reduce_tokens(
            tokens,
            self._head,
            needs,
            measured=frozenset(needs - trained),
            vocab_size=self.model.backbone.shape.vocab_size,
            budget=self.budget,
        )
        gate_logit = guide.gate_logit(unflatten(tokens.states, self.names)[self.guide])
        if gate_logit is not None:
            values["gate_logit"] = gate_logit
        return self._combine(Scored(values, tokens.row, input_ids.shape[0] // 2))

    def _head(self, hidden: Tensor, flat: dict[str, Tensor], wanted: frozenset[str]) -> dict[str, Tensor]:
        """The distributions at alpha = 1; those of one guide alone are this one's, not the base head's."""
        states = unflatten(flat, self.names)
        once = torch.ones(1, len(self.names), device=hidden.device)
        if len(self.names) == 1:
            return self.model.distributions(hidden, states, once, wanted, upcast=True)
        alone, base_head = ({name: states[name]} for name in self.names)
        z = self.model.distributions(hidden, states, once, wanted - {"reward", "delta", "base_head"}, upcast=True)
        z |= self.model.distributions(hidden, alone, once[:, :1], wanted & {"reward", "delta"}, upcast=True)
        if "base_head" in wanted:
            z["base_head"] = self.model.distributions(hidden, base_head, once[:, :1], upcast=True)["policy"]
        return z

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
        self.aligned, self.objectives = model, method.objectives
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
        brief(self)

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
        save_guides(self.aligned, self.processing_class, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        load_guides(self.aligned, resume_from_checkpoint)

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
