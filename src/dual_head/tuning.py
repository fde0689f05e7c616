"""The peers' own trainers for the baselines we compare with: TRL's DPO, SimPO and Bradley-Terry reward models.

An adapter: it hands our token ids, our TrainingArguments and a model to TRL, and takes away what TRL does beside
training, which is tokenising, truncating, model cards, telemetry and a pickle of the arguments. It knows no guide,
no method and no text; `trl` and `peft` are optional and imported only when a trainer is built.
"""

import copy
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from dual_head.errors import DualHeadError, did_you_mean, require
from dual_head.held_out import HeldOutTrainer
from dual_head.options import build

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["DPOOptions", "Kind", "PeerOptions", "RewardOptions", "SimPOOptions", "kind_of_peer", "preference_trainer"]

Kind = Literal["dpo", "simpo", "reward"]

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True, kw_only=True)
class DPOOptions:
    """-log sigmoid(beta (log pi(y+)/ref(y+) - log pi(y-)/ref(y-))). Errors: beta <= 0."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        _check_at_least(self, beta=0, excluded=("beta",))


@dataclass(frozen=True, kw_only=True)
class SimPOOptions:
    """-log sigmoid(beta (log pi(y+)/|y+| - log pi(y-)/|y-| - gamma_ratio)). Errors: beta <= 0, gamma_ratio < 0."""

    beta: float = 2.0
    gamma_ratio: float = 0.5  # gamma / beta, as the paper tabulates it

    def __post_init__(self) -> None:
        _check_at_least(self, beta=0, gamma_ratio=0, excluded=("beta",))


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """-log sigmoid(r(x, y+) - r(x, y-)), which has nothing to choose."""


PeerOptions = DPOOptions | SimPOOptions | RewardOptions

_OPTIONS: dict[str, type] = {"dpo": DPOOptions, "simpo": SimPOOptions, "reward": RewardOptions}


def kind_of_peer(options: PeerOptions) -> Kind:
    """Name the trainer that these options belong to."""
    return next(kind for kind, cls in _OPTIONS.items() if type(options) is cls)  # type: ignore[return-value]


def preference_trainer(
    kind: Kind,
    lm: "PreTrainedModel | PeftModel",
    args: TrainingArguments,
    *,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel | None = None,
    options: Mapping[str, Any] | None = None,
    save: Callable[[str], None] | None = None,
    load: Callable[[str], None] | None = None,
) -> Trainer:
    """Build TRL's trainer of one kind for rows of prompt_ids, chosen_ids and rejected_ids, used as they are.

    save and load: write and read the weights of a checkpoint's folder in our own format instead of the model's.

    loss = mean_pairs L, with L in `DPOOptions`, `SimPOOptions` or `RewardOptions`; every other setting is `args`'.
    DPO's reference is `reference`, else `lm` as it is now: a frozen copy, or TRL's copy of the adapter.
    Errors: trl not installed, unknown kinds and options, missing columns, nothing to train, a reference that would
    be trained too, a reward model whose padding is EOS, and whatever TRL refuses.
    """
    if kind not in _OPTIONS:
        raise DualHeadError(f"There is no trainer '{kind}'.{did_you_mean(kind, _OPTIONS)}")
    chosen = build(_OPTIONS[kind], options or {})
    require("trl", "trl")
    _check_trainable(kind, lm)
    tokenizer = copy.deepcopy(tokenizer)  # TRL sets its padding token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise DualHeadError("The tokenizer has neither a padding nor an EOS token. Set tokenizer.pad_token.")
    given: dict[str, Any] = {
        "train_dataset": _select(train_dataset),
        "eval_dataset": None if eval_dataset is None else _select(eval_dataset),
    }
    if kind == "dpo":
        trainer, config, collator = _dpo()
        settings = {"beta": chosen.beta, "loss_type": ["sigmoid"], "max_length": None}
        given["ref_model"] = _reference(lm, reference)
    elif reference is not None:
        raise DualHeadError(f"'{kind}' compares with no reference. Leave `reference` out, or train 'dpo'.")
    elif kind == "simpo":
        trainer, config, collator = _simpo(pad)
        settings = {
            "beta": chosen.beta,
            "simpo_gamma": chosen.gamma_ratio * chosen.beta,
            "loss_type": "simpo",
            "cpo_alpha": 0.0,  # the weight of CPO's own term, which SimPO has not
            "max_length": sys.maxsize,  # None would mean 512
        }
    else:
        if pad == tokenizer.eos_token_id:
            raise DualHeadError(
                "A reward model reads its score at the last token that is not padding, so with EOS as padding it "
                "never sees EOS. Set tokenizer.pad_token to another token of the vocabulary that ends no reply."
            )
        trainer, config, collator = _reward(pad)
        settings = {"max_length": None}
    try:
        built = trainer(
            model=lm,
            args=config(**_shared(args), **settings),
            data_collator=collator,
            processing_class=tokenizer,
            **given,
        )
    except ValueError as error:
        raise DualHeadError(f"TRL does not train this: {error}") from error
    built.save_weights, built.load_weights = save, load
    return built


class _IdsOnly(Trainer):
    """TRL's trainers less what they do beside training. The names are TRL's, so they are what it calls."""

    save_weights: Callable[[str], None] | None = None
    load_weights: Callable[[str], None] | None = None

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # DPO would tokenise text here, and has no switch for rows that are tokens already

    @staticmethod
    def tokenize_row(feature: Mapping[str, Any], model: Any = None) -> None:
        """Leave the row as it is: CPO maps this over the data and would tokenise text."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: it would go beside the checkpoints at every save."""

    def _send_telemetry(self) -> None:
        """Tell nobody: TRL calls home when a trainer is built."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, without the warning that it uses names transformers has since renamed."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
            return super().compute_loss(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # As transformers does, less training_args.bin, which is a pickle. By default PEFT would look the backbone up
        # on the hub to see whether its embeddings grew; nothing here trains them.
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if self.save_weights is not None:
            if self.args.should_save:  # transformers asks every process
                self.save_weights(folder)
            return
        model: Any = self.model
        options = {"save_embedding_layers": False} if is_peft_model(model) else {}
        model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save, **options)
        if self.processing_class is not None and self.args.should_save:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.load_weights is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # transformers would look for the model's own names in our file, and load none of them without a word.
        if self.load_weights is None:
            super()._load_best_model()
        elif self.state.best_model_checkpoint is not None:
            self.load_weights(self.state.best_model_checkpoint)


class _Scored(HeldOutTrainer):
    """TRL's reward trainer with the metrics of our own preferences, for every held-out pair."""

    def pair_metrics(self, outputs: Any) -> dict[str, Tensor]:
        """Those of -log sigmoid(r(x, y+) - r(x, y-)), named as those of guides; logits [2B, 1], chosen first."""
        chosen, rejected = outputs.logits[:, 0].float().chunk(2)
        margin = chosen - rejected
        return {
            "preference": -F.logsigmoid(margin),
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, less TRL's averages of batches by the same names."""
        output = super().evaluation_loop(*args, **kwargs)
        metrics: Any = self._metrics  # type: ignore[attr-defined] - TRL's, which its log adds
        for name in self.held_out:
            metrics["eval"].pop(name, None)
        return output


@dataclass(frozen=True)
class _Rows:
    """TRL's own collator after one change of every row, so that evaluate() takes the rows that training took."""

    row: Callable[[Mapping[str, list[int]]], dict[str, list[int]]]
    collate: Callable[[list[dict[str, list[int]]]], dict[str, Any]]

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        return self.collate([self.row(row) for row in rows])


def _whole(row: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}


def _labelled(row: Mapping[str, list[int]]) -> dict[str, list[int]]:
    columns = {}
    for side in ("chosen", "rejected"):
        prompt, reply = row["prompt_ids"], row[f"{side}_ids"]
        columns[f"{side}_input_ids"] = prompt + reply
        columns[f"{side}_attention_mask"] = [1] * len(prompt + reply)
        columns[f"{side}_labels"] = [-100] * len(prompt) + reply
    return columns


def _dpo() -> tuple[type, type, None]:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    return _ids_only(DPOTrainer), DPOConfig, None  # its own collator takes our columns


def _simpo(pad: int) -> tuple[type, type, _Rows]:
    from trl.import_utils import suppress_experimental_warning

    with suppress_experimental_warning():
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.utils import DPODataCollatorWithPadding

    return _ids_only(CPOTrainer), CPOConfig, _Rows(_labelled, DPODataCollatorWithPadding(pad_token_id=pad))


def _reward(pad: int) -> tuple[type, type, _Rows]:
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

    return _ids_only(RewardTrainer, _Scored), RewardConfig, _Rows(_whole, DataCollatorForPreference(pad_token_id=pad))


def _ids_only(trainer: type, *more: type) -> type:
    return type(trainer.__name__, (*more, _IdsOnly, trainer), {})


def _shared(args: TrainingArguments) -> dict[str, Any]:
    """Every setting of transformers, so that none of TRL's other defaults (bf16, recomputation, rates) comes in."""
    values = {field.name: getattr(args, field.name) for field in fields(TrainingArguments) if field.init}
    if values["train_sampling_strategy"] == "group_by_length":
        values["train_sampling_strategy"] = "random"  # transformers tells lengths by a column that we do not have
    return {**values, "remove_unused_columns": False}  # the collators read ours, which no model's forward names


def _select(dataset: Dataset) -> Dataset:
    """Our columns alone: TRL gives others a meaning, such as "margin" and "images"."""
    missing = [name for name in COLUMNS if name not in dataset.column_names]
    if missing:
        raise DualHeadError(f"The pairs lack {', '.join(missing)}; they have {', '.join(dataset.column_names)}.")
    return dataset.select_columns(list(COLUMNS))


def _check_trainable(kind: Kind, lm: "PreTrainedModel | PeftModel") -> None:
    if not any(parameter.requires_grad for parameter in lm.parameters()):
        raise DualHeadError(
            "Every parameter of the model is frozen. Load an adapter with is_trainable=True, or unfreeze the model."
        )
    if kind == "dpo" and is_peft_model(lm):
        if "default" not in lm.peft_config:
            raise DualHeadError("TRL's DPO trains the adapter named 'default', which this model has not.")
        if "ref" in lm.peft_config:
            lm.delete_adapter("ref")  # type: ignore[operator] - an earlier trainer's reference; TRL makes a new one


def _reference(lm: "PreTrainedModel | PeftModel", given: PreTrainedModel | None) -> PreTrainedModel | None:
    if given is None and is_peft_model(lm):
        return None  # TRL copies the adapter
    if given is None:
        # TRL would load it by the name in the config, whatever `lm` has become since.
        reference: Any = copy.deepcopy(lm)
        # A trainer patches its model's forward, and the copy of a patched forward would still run the original.
        reference.__dict__.pop("forward", None)
    else:
        reference = given
    trained = {parameter.data_ptr() for parameter in lm.parameters() if parameter.requires_grad}
    if trained & {parameter.data_ptr() for parameter in reference.parameters()}:
        raise DualHeadError("The reference holds weights that are trained. Give a copy, or leave `reference` out.")
    return reference.requires_grad_(False).eval()


def _check_at_least(options: Any, *, excluded: Sequence[str] = (), **least: float) -> None:
    for name, bound in least.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and (value > bound if name in excluded else value >= bound)):
            word = "above" if name in excluded else "at least"
            raise DualHeadError(f"{type(options).__name__}.{name} must be {word} {bound}, not {value}.")
