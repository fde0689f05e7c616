"""The reward model of ARGS: Bradley-Terry, trained by TRL's RewardTrainer, acting while decoding.

    L = -log sigmoid(r(x, y+) - r(x, y-))
    z_t(v) = z_base,t(v) + alpha r(x, y_<t, v)  for the k most likely v under z_base, all others ruled out

Source: Khanov et al. 2024, "ARGS: Alignment as Reward-Guided Search": k = 10, and alpha is its w (1 in the paper,
1.5 in its published run). By default a LoRA and a score head on the backbone, whose weights it shares in memory.
"""

from dual_head.guides.reward_model import RewardModelConfig
from dual_head.methods.base import Method
from dual_head.tuning import RewardOptions

METHOD = Method(
    name="reward",
    guide=RewardModelConfig(tune="lora", k=10),
    peer=RewardOptions(),
    training={"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={"k": "guide.k", "rank": "guide.rank"},
)
