"""IAV: alignment vectors, a linear head beside the lm_head that is trained by preferences and kept small.

    z_t = z_base,t + alpha W_a h_t
    L = L_pref + lambda_kl (KL_chosen + KL_rejected) / 2 + lambda_l2 (|a|^2_chosen + |a|^2_rejected) / 2

    L_pref  -log sigmoid(beta [(log pi - log pi_base)(y+) - (log pi - log pi_base)(y-)])

Source: "Inherent Alignment Vectors". The reference is the frozen backbone, from the same forward; KL is over the
whole vocabulary and the norm squared, each a mean over response tokens, where the published code has others
(docs/provenance). train_base_head also trains a head beside the backbone's, as the source means it: it is a guide
of its own, "base_head", held to the backbone by the KL term.
"""

from dual_head.guides.linear import LinearConfig
from dual_head.losses.kl import Kl
from dual_head.losses.norm import Norm
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method, SecondGuide

METHOD = Method(
    name="iav",
    guide=LinearConfig(),
    objectives=(
        Preference(weight=1.0, beta=0.1, through="policy", reference_free=False),
        Kl(weight=0.1),
        Norm(weight=0.01),
    ),
    second=SecondGuide(name="base_head", guide=LinearConfig(), option="train_base_head"),
    training={
        "learning_rate": 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 4,
    },
    run={"max_length": 2048},
    symbols={
        "beta": "preference.beta",
        "lambda_kl": "kl.weight",
        "lambda_l2": "norm.weight",
        "reference_free": "preference.reference_free",
        "rank": "guide.rank",
    },
)
