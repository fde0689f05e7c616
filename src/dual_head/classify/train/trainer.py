"""Training a classifier with transformers' Trainer: both losses averaged over a whole optimizer step.

A step may be made of several batches and processes. The class loss is a mean over its rows and the reasoning loss a
mean over its tokens, however they are spread; transformers counts one of the two only. It knows rows of ids, and
neither files nor text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments

from dual_head.classify.data.collate import ExampleCollator
from dual_head.classify.data.tokenize import Tokenized
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.errors import DualHeadError
from dual_head.train.arguments import HeadTrainingArguments
from dual_head.train.base import HeadTrainer, rows_seen
from dual_head.train.resume import save_stored


@dataclass
class ClassifierTrainingArguments(HeadTrainingArguments):
    """transformers' TrainingArguments with the paper's defaults: AdamW 2e-4, decay 0.01, cosine, 3 epochs."""

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=5, metadata={"help": "Steps of warm-up, or their share where below 1."})

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor:  # transformers smooths in its loss, and these losses are the model's
            raise DualHeadError(
                "--label_smoothing_factor has no effect on a classifier's losses. Leave it out, or give shares as "
                "labels."
            )


class ClassifierTrainer(HeadTrainer):
    """transformers' Trainer for a `DualHeadReasoningModel`: logs both losses, keeps the held-out logits.

    held_out: (logits [N, K], labels) of the last evaluation, rows in the order given.
    """

    def __init__(
        self,
        model: DualHeadReasoningModel,
        args: TrainingArguments,
        *,
        train_dataset: Sequence[Tokenized],
        eval_dataset: Sequence[Tokenized] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        compute_metrics: Any = None,
    ):
        self.classifier = model
        self.held_out: tuple[Tensor, Tensor] | None = None
        self._parts: dict[str, list[Tensor]] = {"cls_loss": [], "lm_loss": []}
        self._steps = 0  # that these parts are of
        learnt = sum(sum(row.learnt) for row in train_dataset) / max(1, len(train_dataset))
        model.reasoning_tokens = learnt * rows_seen(args, len(train_dataset))
        pad = tokenizer.pad_token_id if tokenizer is not None and isinstance(tokenizer.pad_token_id, int) else 0
        super().__init__(
            stored=model,
            noun="classifier",
            model=model,
            args=args,
            train_dataset=train_dataset,  # type: ignore[arg-type]
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            data_collator=ExampleCollator(pad),
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
        )
        self.model_accepts_loss_kwargs = True

    def row_lengths(self, dataset: Any) -> list[int]:
        """See `HeadTrainer`."""
        return [len(row.learnt) for row in dataset]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Rows and tokens [2] that all batches of a step, on all processes, have together."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        self._steps += 1
        parts = [self.classifier.loss_totals(batch["labels"], batch.get("lm_labels")) for batch in batch_samples]
        totals = torch.stack(parts).sum(0).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals).view(-1, 2).sum(0)  # type: ignore[union-attr]
        return totals

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Both losses of a batch, as parts of the step's means."""
        outputs = model(**inputs, totals=num_items_in_batch)
        loss = outputs.loss
        if model.training:
            # What processes have is averaged, and each has a part of the sum only.
            world = self.args.world_size if num_items_in_batch is not None else 1
            loss = loss * world
            for name, values in self._parts.items():
                if (part := getattr(outputs, name)) is not None:
                    values.append(part.detach() * world)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Classify one batch: loss, logits, labels."""
        del prediction_loss_only, ignore_keys
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs.logits.detach(), inputs["labels"]

    def evaluation_loop(self, *args, **kwargs):
        """Run transformers' loop, and keep what the held-out rows were given."""
        output = super().evaluation_loop(*args, **kwargs)
        self.held_out = (torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids))
        return output

    def evaluate_once(self) -> tuple[Tensor, Tensor]:
        """`held_out` of the weights as they are; evaluates unless the last step did. All processes take part."""
        last = [row["step"] for row in self.state.log_history if "eval_loss" in row][-1:]
        if self.held_out is None or last != [self.state.global_step]:
            # Not `evaluate`, which logs: a tracker would begin a second run for what comes after training.
            self.evaluation_loop(self.get_eval_dataloader(), "held-out rows")
        assert self.held_out is not None
        return self.held_out

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the two losses since the last log, over all processes."""
        if "loss" in logs or "train_runtime" in logs:
            logs = {**logs, **self._mean_losses()}
        super().log(logs, start_time)

    def _mean_losses(self) -> dict[str, float]:
        """Both losses, means over the steps since the last call; one that no process had is left out."""
        zero = torch.zeros((), device=self.args.device)
        sums = [torch.stack(values).sum().to(zero) if values else zero for values in self._parts.values()]
        counts = [zero + len(values) for values in self._parts.values()]
        # All four at once and always: a process without rationales takes part as well.
        reduced: Any = self.accelerator.reduce(torch.stack([*sums, *counts]), reduction="mean")
        totals, present = reduced.view(2, -1).tolist()
        steps, self._steps = max(1, self._steps), 0
        for values in self._parts.values():
            values.clear()
        return {name: totals[i] / steps for i, name in enumerate(self._parts) if present[i]}

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        self.held_out = None  # of other weights

    @property
    def best_step(self) -> int | None:
        """The step whose weights `load_best_model_at_end` takes, None where the last ones are kept."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint
        return self.state.best_global_step if best else None


def save_classifier(model: DualHeadReasoningModel, tokenizer: Any, folder: str | Path) -> None:
    """Write a classifier and its tokenizer. Errors: weights that are not finite."""
    save_stored(model, tokenizer, folder, "classifier")
