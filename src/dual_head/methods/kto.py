"""KTO: a guide from single replies, each only labelled desirable or not; no pairs are needed.

    z_t = lm_head(h_t + alpha U V h_t)
    L = lambda_y [1 - sigmoid(s beta (r - z_0))] + lambda_kl KL,   r = log pi(y) - log pi_base(y)

    s = 1 and lambda_D for a desirable reply, s = -1 and lambda_U for another; z_0 = max(0, mean of mismatched r)

Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", with TRL's estimate of z_0.
The reference is the frozen backbone, from the same forward. The guide is that of `hidden`; guide.kind takes another.
"""

from dual_head.guides.hidden import HiddenConfig
from dual_head.losses.gate_entropy import GateEntropy
from dual_head.losses.kl import Kl
from dual_head.losses.kto import Kto
from dual_head.losses.norm import Norm
from dual_head.methods.base import Method

METHOD = Method(
    name="kto",
    guide=HiddenConfig(),
    objectives=(Kto(weight=1.0, beta=0.1), Kl(weight=0.0), Norm(weight=0.0), GateEntropy(weight=0.01)),
    training={"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={
        "beta": "kto.beta",
        "desirable_weight": "kto.desirable_weight",
        "undesirable_weight": "kto.undesirable_weight",
        "lambda_kl": "kl.weight",
        "lambda_l2": "norm.weight",
        "rank": "guide.rank",
        "gate": "guide.gate",
    },
)
