"""DPO: direct preference optimisation of the model itself; a baseline, trained by TRL's DPOTrainer.

    L = -log sigmoid(beta [(log pi - log pi_ref)(y+) - (log pi - log pi_ref)(y-)])
    z_t = z_base,t + alpha (z_tuned,t - z_base,t)          alpha = 1 is the tuned model, less is realigned

Source: Rafailov et al. 2023; decoding-time realignment: Liu et al. 2024. By default a LoRA on the backbone, whose
weights it shares in memory; guide.tune=full trains a copy of all weights. The objectives are only measured.
"""

from dual_head.guides.language_model import LanguageModelConfig
from dual_head.losses.kl import Kl
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method
from dual_head.tuning import DPOOptions

METHOD = Method(
    name="dpo",
    guide=LanguageModelConfig(against="backbone", rank=8, lora_alpha=16.0, dropout=0.05),
    peer=DPOOptions(beta=0.1),
    objectives=(Preference(weight=0.0, beta=0.1, through="policy", reference_free=False), Kl(weight=0.0)),
    training={"learning_rate": 5e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={"beta": "peer.beta", "rank": "guide.rank"},
)
