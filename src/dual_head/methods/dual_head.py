"""Dual-Head: a reward head and an attention gate beside the frozen LM head.

    z_t = (1 - g_t) z_LM,t + g_t z_RM,t
    L = L_LM(policy, y+) + lambda_R L_pref(reward head) - lambda_G H(g)

    L_LM    mean_t -log softmax(z_t)(y+_t)
    L_pref  -log sigmoid(beta_r [sum_t log pi_r(y+_t) - sum_t log pi_r(y-_t)]),  pi_r = softmax(z_RM)

Source: "Dual-Head: Compact and Efficient Alignment for Large Language Models via Dual-Head Architecture";
L_pref is GenARM's (Xu et al. 2024), and so is beta_r = 0.05, which the paper does not state. Where the paper
contradicts itself docs/provenance says what is done instead. The divergence from the backbone is measured only.
"""

from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.losses.gate_entropy import GateEntropy
from dual_head.losses.kl import Kl
from dual_head.losses.next_token import NextToken
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method

METHOD = Method(
    name="dual_head",
    guide=RewardHeadConfig(),
    objectives=(
        NextToken(weight=1.0),
        Preference(weight=1.0, beta=0.05, through="reward"),
        GateEntropy(weight=0.01),
        Kl(weight=0.0),
    ),
    training={"learning_rate": 5e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 3.0},
    symbols={
        "beta_r": "preference.beta",
        "lambda_r": "preference.weight",
        "lambda_g": "gate_entropy.weight",
        "gate_entropy": "gate_entropy.form",
        "preference_on": "preference.through",
        "rank": "guide.rank",
        "gate": "guide.gate",
    },
)
