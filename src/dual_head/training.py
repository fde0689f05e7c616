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
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from dual_head import policy
from dual_head.backbone import Features
from dual_head.data.tokenize import pair_lengths
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.features import FeatureSet
from dual_head.guides import flatten, unflatten
from dual_head.kernels import WORTH_COMPILING
from dual_head.methods import Method
from dual_head.methods.base import BASE_HEAD
from dual_head.model import AlignedModel, Encoded
from dual_head.objectives import name_of
from dual_head.policy import Voice
from dual_head.progress import brief
from dual_head.reductions import DEFAULT_BUDGET, Head, Scored, Tokens, at_a_time, by_pairs, pick_tokens, reduce_tokens
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
        self.compiled = model.backbone.shape.vocab_size >= WORTH_COMPILING
        self.looking = True  # False leaves out what is computed for metrics alone
        self._head = _head_of(model, self.names)

    @property
    def config(self):
        """The model's configuration, where the Trainer looks for it."""
        return self.model.config

    def activation_checkpointing_enable(self, **_options: Any) -> None:
        """Do nothing: the backbone keeps no activations and the vocabulary part is recomputed anyway."""

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Take a PairBatch; give {"loss": [], metrics: [B]}."""
        guide = self.model.guide(self.guide)
        if not guide.trainable:
            raise DualHeadError(
                f"The guide '{self.guide}' only acts during decoding, so no objective can train it. "
                "Train what it is made of (for a reward model: 'dual-head train reward')."
            )
        _require_gathered(self.model)
        encoded, at = self._encode(**batch)
        tokens = pick_tokens(encoded.hidden, flatten(encoded.states), at, batch["labels"], batch["row"])
        counts = batch["counts"]
        shape, dtype = self.model.backbone.shape, tokens.hidden.dtype
        return by_pairs(
            tokens,
            counts,
            lambda part, pairs: self._loss(part, pairs, of=len(counts)),
            self.model.parameters(),
            size=at_a_time(self.budget, shape.vocab_size, dtype, compiled=self.compiled),
        )

    def _encode(
        self,
        *,
        at: Tensor,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        parts: Tensor | None = None,
        sequences: Tensor | None = None,
        within: Tensor | None = None,
        hidden: Tensor | None = None,
        layers: dict[int, Tensor] | None = None,
        **_: Any,
    ) -> tuple[Encoded, Tensor]:
        """One pass over the batch, or over what is kept of one (hidden, layers [R, T, d]); and where `at` is in it.

        A guide without a history sees the scored positions alone. One that looks back sees whole sequences, even
        where the backbone has read a prompt once for both. A model reads rows as they are, through the masks that
        keep responses apart.
        """
        guide, select = self.model.guide(self.guide), None
        if not guide.reads_tokens and not guide.cache_layers:
            select, at = at[None], torch.arange(len(at), device=at.device)
        elif not guide.reads_tokens and sequences is not None:
            assert within is not None
            select, at = sequences, within
        if hidden is not None:
            features = Features(hidden, layers or {})
            features = features if select is None else features.select(select)
            return Encoded(features.hidden, self.model.encode_features(features, self.names)), at
        masks = None if parts is None else self.model.branch_masks(parts)
        encoded = self.model.encode(
            input_ids, attention_mask=masks, position_ids=position_ids, guides=self.names, select=select
        )
        return encoded, at

    def _loss(self, tokens: Tokens, pairs: int, *, of: int) -> dict[str, Tensor]:
        """The share that some pairs of a batch of `of` have in its loss, and their metrics [pairs]."""
        objectives = [x for x in self.method.objectives if x.weight or self.looking]
        trained = {need for objective in objectives if objective.weight for need in objective.needs}
        needs = {need for x in objectives for need in (x.needs | x.looks_at if self.looking else x.needs)}
        values = reduce_tokens(
            tokens,
            self._head,
            needs,
            measured=frozenset(needs - trained),
            vocab_size=self.model.backbone.shape.vocab_size,
            budget=self.budget,
            compiled=self.compiled,
        )
        gate_logit = self.model.guide(self.guide).gate_logit(unflatten(tokens.states, self.names)[self.guide])
        if gate_logit is not None:
            values["gate_logit"] = gate_logit
        scored = Scored(values, tokens.row, pairs)
        loss = torch.zeros((), device=tokens.row.device)
        metrics: dict[str, Tensor] = {}
        for objective in objectives:
            terms = objective(scored)
            metrics[name_of(objective)] = terms.loss.detach()
            metrics |= {name: value.detach() for name, value in terms.metrics.items()}
            if objective.weight:
                loss = loss + objective.weight * terms.loss.sum() / of
        return {"loss": loss, **metrics}


def _require_gathered(model: AlignedModel) -> None:
    """Refuse guides that FSDP shards apart from the loss: their gradients, taken in its forward, would be lost."""
    if any(isinstance(x, DTensor) for x in model.parameters() if x.requires_grad):
        raise DualHeadError(
            "A guide is sharded apart from the loss that trains it, so that its gradient would be lost. Shard the "
            "backbone's layers and the whole GuidedLoss, and nothing between: fully_shard(layer), fully_shard(loss)."
        )


def _head_of(model: AlignedModel, names: tuple[str, ...]) -> Head:
    """The distributions at alpha = 1; those of one guide alone are the first one's, not the base head's."""
    backbone, fusion = model.backbone, model.config.fusion
    # Which guides speak in which distributions: together in the policy, the first alone, the base head alone.
    groups = {"": (names, frozenset({"base", "policy"})), "alone/": (names[:1], frozenset({"reward", "delta"}))}
    if len(names) == 1:
        groups = {"": (names, frozenset({"base", "policy", "reward", "delta"}))}
    else:
        groups["base_head/"] = (names[1:], frozenset({"base_head"}))
    guides = {name: model.guide(name) for name in names}

    def products(hidden: Tensor, flat: dict[str, Tensor], wanted: frozenset[str]) -> dict[str, Tensor]:
        states = unflatten(flat, names)
        out = {}
        for prefix, (who, gives) in groups.items():
            if asked := _as_policy(wanted & gives):
                voices = [Voice(guides[name], states[name], 1.0, model.transfer(name)) for name in who]
                said = policy.products(backbone, voices, hidden, asked, fusion=fusion)
                out |= {prefix + key: x for key, x in said.items()}
        return out

    def combine(said: dict[str, Tensor], wanted: frozenset[str]) -> dict[str, Tensor]:
        out = {}
        for prefix, (who, gives) in groups.items():
            if asked := _as_policy(wanted & gives):
                own = {key.removeprefix(prefix): x for key, x in said.items() if key.startswith(prefix)}
                z = policy.combine([guides[name] for name in who], own, asked, fusion=fusion, upcast=True)
                out |= {"base_head": z["policy"]} if prefix == "base_head/" else z
        return out

    return Head(products, combine)


def _as_policy(wanted: frozenset[str]) -> frozenset[str]:
    """A base head alone is a policy of one guide."""
    return frozenset("policy" if name == "base_head" else name for name in wanted)


class _ByLength(LengthGroupedSampler):
    """transformers' sampler, whose order of an epoch depends on nothing but seed and epoch, so that runs resume."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


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
        self.loss = GuidedLoss(model, method, guide=guide or method.name, budget=budget)
        super().__init__(
            model=self.loss,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=tokenizer,
        )
        brief(self)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # All that one step of the optimizer sees, so that the order is the same however it is spread.
        at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = dataset.pair_lengths() if isinstance(dataset, FeatureSet) else pair_lengths(dataset)
        return _ByLength(at_once, lengths=lengths, seed=seed)

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
