"""DPO: direct preference optimisation of the model itself; a baseline, trained by TRL's DPOTrainer.

    L = -log sigmoid(beta [(log pi - log pi_ref)(y+) - (log pi - log pi_ref)(y-)])
    z_t = z_base,t + alpha (z_tuned,t - z_base,t)          alpha = 1 is the tuned model, less is realigned

Source: Rafailov et al. 2023; decoding-time realignment: Liu et al. 2024. By default a LoRA on the backbone, whose
weights it shares in memory; guide.tune=full trains a copy of all weights. The objectives are only measured.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from dual_head.errors import DualHeadError
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.losses.kl import Kl
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method
from dual_head.methods.peer import PeerOptions, Trl, require_above


@dataclass(frozen=True, kw_only=True)
class DPOOptions(PeerOptions):
    """-log sigmoid(beta (log pi(y+)/ref(y+) - log pi(y-)/ref(y-))). Errors: beta <= 0."""

    has_reference: ClassVar[bool] = True
    beta: float = 0.1

    def __post_init__(self) -> None:
        require_above(self, beta=0)

    def trl(self, lm: Any, tokenizer: Any, reference: Any) -> Trl:
        """DPOTrainer, whose own collator takes our columns; without a reference that is `lm` as it is now.

        Errors: an adapter that TRL would not train, a reference that would be trained too.
        """
        del tokenizer
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        settings = {"beta": self.beta, "loss_type": ["sigmoid"], "max_length": None}
        return Trl(DPOTrainer, DPOConfig, settings, {"ref_model": _reference(lm, reference)})


def _reference(lm: Any, reference: Any) -> Any:
    from accelerate.utils import is_peft_model

    if is_peft_model(lm):
        if "default" not in lm.peft_config:
            raise DualHeadError("TRL's DPO trains the adapter named 'default'. Give the model's adapter that name.")
        if "ref" in lm.peft_config:
            lm.delete_adapter("ref")  # an earlier trainer's reference; TRL makes a new one
        if reference is None:
            return None  # TRL copies the adapter
    if reference is None:
        # TRL would load it by the name in the config, whatever `lm` has become since.
        reference = copy.deepcopy(lm)
        # A trainer patches its model's forward, and the copy of a patched forward would still run the original.
        reference.__dict__.pop("forward", None)
    trained = {parameter.data_ptr() for parameter in lm.parameters() if parameter.requires_grad}
    if trained & {parameter.data_ptr() for parameter in reference.parameters()}:
        raise DualHeadError("The reference shares weights that are trained. Give a copy, or leave `reference` out.")
    return reference.requires_grad_(False).eval()


METHOD = Method(
    name="dpo",
    guide=LanguageModelConfig(against="backbone", rank=8, lora_alpha=16.0, dropout=0.05),
    peer=DPOOptions(beta=0.1),
    objectives=(Preference(weight=0.0, beta=0.1, through="policy", reference_free=False), Kl(weight=0.0)),
    training={"learning_rate": 5e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={"beta": "peer.beta", "rank": "guide.rank"},
)
