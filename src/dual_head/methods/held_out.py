"""transformers' Trainer with errors that name options, and with metrics of every held-out pair.

transformers' own keeps an average of batches. It knows neither methods nor data.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from dual_head.files.reading import reading


class StrictTrainer(Trainer):
    """transformers' Trainer, whose errors about options name them."""

    def __init__(self, *args: Any, **kwargs: Any):
        with reading("These options cannot go together", "Change or leave out what is named."):
            super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any):
        """Make the optimizer. Errors: options that it does not have."""
        with reading("The optimizer cannot be made", "Change --optim, --optim_args or what else is named."):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any):
        """Make the schedule. Errors: options that it does not have."""
        with reading("The schedule cannot be made", "Change --lr_scheduler_type or --lr_scheduler_kwargs."):
            return super().create_scheduler(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        with reading("The best checkpoint cannot be told", "Name a metric with --metric_for_best_model."):
            return super()._determine_best_metric(metrics, trial)


class HeldOutTrainer(StrictTrainer):
    """transformers' Trainer that keeps every held-out pair's metrics, and averages over pairs.

    held_out: {name: [pairs]} of the last evaluation, in the order of the data.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.held_out: dict[str, Tensor] = {}
        self._batches: list[dict[str, Tensor]] = []
        super().__init__(*args, **kwargs)

    def pair_metrics(self, outputs: Any) -> dict[str, Tensor]:
        """Metrics {name: [B]} of a batch, from what `compute_loss` returns beside the loss."""
        return dict(outputs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate one batch of held-out pairs; every process's pairs are gathered, padding dropped."""
        del prediction_loss_only, ignore_keys
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        gathered: Any = self.accelerator.gather_for_metrics(self.pair_metrics(outputs))
        self._batches.append(gathered)
        return loss.detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        """Run transformers' loop, then add the averages over all held-out pairs to its metrics."""
        self._batches = []
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        names = self._batches[0] if self._batches else ()
        self.held_out = {name: torch.cat([batch[name] for batch in self._batches]).float().cpu() for name in names}
        metrics = output.metrics if output.metrics is not None else {}
        metrics.update({f"{prefix}_{name}": values.mean().item() for name, values in self.held_out.items()})
        return output

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        self.held_out = {}  # of other weights

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.held_out = {}

    def evaluate_once(self) -> dict[str, float]:
        """Evaluate, or return the metrics of the last step where it was evaluated already."""
        for row in self.state.log_history[-2:]:
            if "eval_loss" in row and row["step"] == self.state.global_step and self.held_out:
                return {name: value for name, value in row.items() if name.startswith("eval_")}
        # Not `evaluate`, which logs: a tracker would begin a second run for what comes after training.
        return self.evaluation_loop(self.get_eval_dataloader(), "held-out pairs").metrics or {}
