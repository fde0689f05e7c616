"""Training a guide with transformers' Trainer, which does all but the loss.

The model that the Trainer wraps (and DDP or FSDP wraps in turn) is `GuidedLoss`, whose forward is the whole
step from tokens to per-pair losses. Checkpoints hold the guides, the optimizer and the Trainer's state; a
run that was killed goes on from the last whole one. It knows methods and data sets only as values.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments

from dual_head.data import columns_of
from dual_head.data.tokenize import pair_lengths
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.losses import name_of
from dual_head.methods import Method
from dual_head.methods.held_out import HeldOutTrainer
from dual_head.model.aligned import AlignedModel
from dual_head.train.base import HeadTrainer, rows_seen
from dual_head.train.feature_cache import FeatureSet
from dual_head.train.step import GuidedLoss


class GuideTrainer(HeldOutTrainer, HeadTrainer):
    """transformers' Trainer for one guide of an aligned model.

    A step is a mean over its pairs, in however many batches they come. Logs every term and metric by name, saves the
    guides only, and never pickles its arguments.
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
        budget: int | None = None,
    ):
        self.aligned, self.objectives = model, method.objectives
        _require_same(model, method, guide or method.name)
        self._shares: dict[str, list[tuple[float, Tensor]]] = defaultdict(list)  # a batch's share, and its mean
        # A peer's guide is only measured here, once on the held-out pairs.
        pairs = eval_dataset or () if method.peer else train_dataset
        tokens = response_length(pairs) * (len(pairs) if method.peer else rows_seen(args, len(pairs)))
        self.loss = GuidedLoss(model, method, guide=guide or method.name, budget=budget, tokens=tokens)
        super().__init__(
            stored=model,
            model=self.loss,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=tokenizer,
        )

    def row_lengths(self, dataset: Any) -> list[int]:
        """See `HeadTrainer`."""
        return dataset.pair_lengths() if isinstance(dataset, FeatureSet) else pair_lengths(dataset)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Take a step; what only metrics read is measured where the step is logged."""
        step = self.state.global_step + 1
        interval = int(self.state.logging_steps) if self.args.logging_strategy == "steps" else 1
        first = step == 1 and self.args.logging_first_step
        self.loss.looking = first or step == self.state.max_steps or step % max(1, interval) == 0
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.loss.looking = True

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Pairs in all batches of a step; every process has as many, since accelerate fills its batches up."""
        del device
        return sum(_pairs_of(batch) for batch in batch_samples)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Take a batch's share of the step's loss and keep its metrics, on the device, for the next log."""
        share = _pairs_of(inputs) / int(num_items_in_batch) if num_items_in_batch else 1.0
        outputs = model(**inputs)
        loss = outputs.pop("loss") * share
        if model.training:
            for name, value in outputs.items():
                self._shares[name].append((share, value.mean()))
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; the loss is that of the held-out pairs, while transformers' counts a batch's filling too."""
        output = super().evaluation_loop(*args, **kwargs)
        weights = {name_of(x): x.weight for x in self.objectives if x.weight and name_of(x) in self.held_out}
        if weights and output.metrics is not None:
            prefix = kwargs.get("metric_key_prefix", "eval")
            loss = sum(weight * output.metrics[f"{prefix}_{name}"] for name, weight in weights.items())
            output.metrics[f"{prefix}_loss"] = loss
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log, over all processes, to a training log."""
        last = "train_runtime" in logs  # a run shorter than logging_steps has no other log
        if ("loss" in logs or last) and self._shares:
            names = sorted(self._shares)
            means = torch.stack([_mean(self._shares[name]) for name in names])
            means = self.accelerator.reduce(means, reduction="mean").tolist()  # type: ignore[union-attr]
            logs = {**logs, **dict(zip(names, means, strict=True))}
            self._shares.clear()
        super().log(logs, start_time)


def response_length(pairs: Any) -> float:
    """Tokens of both responses of a pair, averaged over the first thousand, or over all in a feature cache."""
    if isinstance(pairs, FeatureSet):
        return pairs.response_tokens() / max(1, len(pairs))
    sample = [pairs[i] for i in range(min(1000, len(pairs)))]
    columns = columns_of(sample[0] if sample else ())[1:]
    return sum(len(row[column]) for row in sample for column in columns) / max(1, len(sample))


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
