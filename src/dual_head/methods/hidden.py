"""Hidden-space guidance: a low-rank change of the hidden state before the lm_head; ours.

    z_t = lm_head(h_t + alpha U V h_t)
    L = L_pref + lambda_kl (KL_chosen + KL_rejected) / 2 + lambda_l2 (|e|^2_chosen + |e|^2_rejected) / 2

2 d r parameters against d V of a head, and one vocabulary product for any number of objectives. The objective is
IAV's; Dual-Head's is there at weight 0 (next_token.weight=1, preference.through=reward, guide.gate=attention).
"""

from dual_head.guides.hidden import HiddenConfig
from dual_head.losses.gate_entropy import GateEntropy
from dual_head.losses.kl import Kl
from dual_head.losses.next_token import NextToken
from dual_head.losses.norm import Norm
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method

METHOD = Method(
    name="hidden",
    guide=HiddenConfig(),
    objectives=(
        Preference(weight=1.0, beta=0.1, through="policy", reference_free=False),
        Kl(weight=0.1),
        Norm(weight=0.0),
        NextToken(weight=0.0),
        GateEntropy(weight=0.01),
    ),
    training={"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={
        "beta": "preference.beta",
        "lambda_kl": "kl.weight",
        "lambda_l2": "norm.weight",
        "reference_free": "preference.reference_free",
        "rank": "guide.rank",
        "gate": "guide.gate",
    },
)
