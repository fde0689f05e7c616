"""GenARM: an autoregressive reward model, a second language model trained on preferences alone.

    z_t = log pi_base(. | x, y_<t) + alpha log pi_r(. | x, y_<t)
    L = -log sigmoid(beta [sum_t log pi_r(y+_t) - sum_t log pi_r(y-_t)])          no reference model

Source: Xu et al. 2024, "GenARM: Reward Guided Generation with Autoregressive Reward Model"; the hyperparameters
are its HH-RLHF run's. By default pi_r is a LoRA on the backbone, whose weights it shares in memory; trained on a
small model and moved to a large one (--backbone) it is weak-to-strong guidance.
"""

from dual_head.guides.language_model import LanguageModelConfig
from dual_head.losses.kl import Kl
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method

METHOD = Method(
    name="genarm",
    guide=LanguageModelConfig(rank=8, lora_alpha=16.0, dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"]),
    objectives=(Preference(weight=1.0, beta=0.05, through="reward"), Kl(weight=0.0)),
    training={
        "learning_rate": 5e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "weight_decay": 0.05,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 32,
    },
    symbols={"beta": "preference.beta", "rank": "guide.rank"},
)
