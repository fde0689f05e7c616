"""SimPO: preference optimisation without a reference, per token; a baseline, trained by TRL's CPOTrainer.

    L = -log sigmoid(beta [log pi(y+) / |y+| - log pi(y-) / |y-| - gamma_ratio])
    z_t = z_base,t + alpha (z_tuned,t - z_base,t)          alpha = 1 is the tuned model, less is realigned

Source: Meng et al. 2024. A length-normalised loss needs a beta some twenty times larger than DPO's. By default a
LoRA on the backbone, whose weights it shares in memory. The objectives are only measured.
"""

from dual_head.guides.language_model import LanguageModelConfig
from dual_head.losses.kl import Kl
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method
from dual_head.tuning import SimPOOptions

METHOD = Method(
    name="simpo",
    guide=LanguageModelConfig(against="backbone", rank=8, lora_alpha=16.0, dropout=0.05),
    peer=SimPOOptions(beta=2.0, gamma_ratio=0.5),
    objectives=(Preference(weight=0.0, beta=0.1, through="policy", reference_free=False), Kl(weight=0.0)),
    training={"learning_rate": 5e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={"beta": "peer.beta", "gamma_ratio": "peer.gamma_ratio", "rank": "guide.rank"},
)
