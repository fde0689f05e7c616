"""SimPO: preference optimisation without a reference, per token; a baseline, trained by TRL's CPOTrainer.

    L = -log sigmoid(beta [log pi(y+) / |y+| - log pi(y-) / |y-| - gamma_ratio])
    z_t = z_base,t + alpha (z_tuned,t - z_base,t)          alpha = 1 is the tuned model, less is realigned

Source: Meng et al. 2024. A length-normalised loss needs a beta some twenty times larger than DPO's. By default a
LoRA on the backbone, whose weights it shares in memory. The objectives are only measured.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

from dual_head.errors import DualHeadError
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.losses.kl import Kl
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method
from dual_head.methods.peer import ChangedRows, PeerOptions, Row, Trl, require_above


@dataclass(frozen=True, kw_only=True)
class SimPOOptions(PeerOptions):
    """-log sigmoid(beta (log pi(y+)/|y+| - log pi(y-)/|y-| - gamma_ratio)). Errors: beta <= 0, gamma_ratio < 0."""

    beta: float = 2.0
    gamma_ratio: float = 0.5  # gamma / beta, as the paper tabulates it

    def __post_init__(self) -> None:
        require_above(self, beta=0)
        if not (math.isfinite(self.gamma_ratio) and self.gamma_ratio >= 0):
            raise DualHeadError(f"SimPOOptions.gamma_ratio must be at least 0, not {self.gamma_ratio}.")

    def trl(self, lm: Any, tokenizer: Any, reference: Any) -> Trl:
        """CPOTrainer without CPO's own term."""
        del lm, reference
        from trl.import_utils import suppress_experimental_warning

        with suppress_experimental_warning():
            from trl.experimental.cpo import CPOConfig, CPOTrainer
            from trl.experimental.utils import DPODataCollatorWithPadding

        settings = {
            "beta": self.beta,
            "simpo_gamma": self.gamma_ratio * self.beta,
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
            "max_length": sys.maxsize,  # None would mean 512
        }
        collate = ChangedRows(_labelled, DPODataCollatorWithPadding(pad_token_id=tokenizer.pad_token_id))
        return Trl(CPOTrainer, CPOConfig, settings, collate=collate)


def _labelled(row: Row) -> dict[str, list[int]]:
    columns = {}
    for side in ("chosen", "rejected"):
        prompt, reply = row["prompt_ids"], row[f"{side}_ids"]
        columns[f"{side}_input_ids"] = prompt + reply
        columns[f"{side}_attention_mask"] = [1] * len(prompt + reply)
        columns[f"{side}_labels"] = [-100] * len(prompt) + reply
    return columns


METHOD = Method(
    name="simpo",
    guide=LanguageModelConfig(against="backbone", rank=8, lora_alpha=16.0, dropout=0.05),
    peer=SimPOOptions(beta=2.0, gamma_ratio=0.5),
    objectives=(Preference(weight=0.0, beta=0.1, through="policy", reference_free=False), Kl(weight=0.0)),
    training={"learning_rate": 5e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={"beta": "peer.beta", "gamma_ratio": "peer.gamma_ratio", "rank": "guide.rank"},
)
