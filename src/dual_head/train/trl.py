"""TRL's trainers for the baselines we compare with: an adapter that each baseline's options tell which trainer it is.

It hands our token ids, our TrainingArguments and a model to TRL, and takes away what TRL does beside training, which is
tokenising, truncating, model cards, telemetry and a pickle of the arguments. It knows no guide, no method and no text;
`trl` and `peft` are optional and imported only when a trainer is built.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from dual_head.data import COLUMNS
from dual_head.errors import DualHeadError, require
from dual_head.methods.peer import PeerOptions
from dual_head.train.resume import StoredCheckpoints

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["preference_trainer"]


def preference_trainer(
    options: PeerOptions,
    lm: "PreTrainedModel | PeftModel",
    args: TrainingArguments,
    *,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel | None = None,
    save: Callable[[str], None] | None = None,
    load: Callable[[str], None] | None = None,
) -> Trainer:
    """Build TRL's trainer of these options for rows of prompt_ids, chosen_ids and rejected_ids, used as they are.

    save and load: write and read the weights of a checkpoint's folder in our own format instead of the model's.

    loss = mean_pairs L, with L as the options have it; every other setting is `args`'. reference: of a loss with one,
    else `lm` as it is now: a frozen copy, or TRL's copy of the adapter.
    Errors: trl not installed, missing columns, nothing to train, a reference where none is read, and whatever the
    options or TRL refuse.
    """
    require("trl", "trl")
    if not any(parameter.requires_grad for parameter in lm.parameters()):
        raise DualHeadError(
            "Every parameter of the model is frozen. Load an adapter with is_trainable=True, or unfreeze the model."
        )
    tokenizer = copy.deepcopy(tokenizer)  # TRL sets its padding token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not isinstance(tokenizer.pad_token_id, int):
        raise DualHeadError("The tokenizer has neither a padding nor an EOS token. Set tokenizer.pad_token.")
    data = {
        "train_dataset": _select(train_dataset),
        "eval_dataset": None if eval_dataset is None else _select(eval_dataset),
    }
    if reference is not None and not options.has_reference:
        raise DualHeadError(f"The loss of {type(options).__name__} has no reference. Leave `reference` out.")
    peer = options.trl(lm, tokenizer, reference)
    trainer: Any = type(peer.trainer.__name__, (*peer.mixins, _IdsOnly, peer.trainer), {})
    try:
        built = trainer(
            model=lm,
            args=peer.config(**_shared(args), **peer.settings),
            data_collator=peer.collate,
            processing_class=tokenizer,
            **data,
            **peer.arguments,
        )
    except ValueError as error:
        raise DualHeadError(f"TRL does not train this: {error}") from error
    built.save_weights, built.load_weights = save, load
    return built


class _IdsOnly(StoredCheckpoints):
    """TRL's trainers less what they do beside training. The names are TRL's, so they are what it calls."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # DPO would tokenise text here, and has no switch for rows that are tokens already

    @staticmethod
    def tokenize_row(feature: Mapping[str, Any], model: Any = None) -> None:
        """Leave the row as it is: CPO maps this over the data and would tokenise text."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: it would go beside the checkpoints at every save."""

    def _send_telemetry(self) -> None:
        """Send none: TRL reports each trainer that is built to its authors."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, without the warning that it uses names transformers has since renamed."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
            return super().compute_loss(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # As transformers does, less training_args.bin, which is a pickle. By default PEFT would look the backbone up
        # on the hub to see whether its embeddings grew, but they are not trained here.
        if self.save_weights is not None:
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or self.args.output_dir or "."
        model: Any = self.model
        options = {"save_embedding_layers": False} if is_peft_model(model) else {}
        model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save, **options)
        if self.processing_class is not None and self.args.should_save:
            self.processing_class.save_pretrained(folder)


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
