"""MAV: modular alignment vectors, from several layers of the backbone at once.

    a_t = MLP(fuse(h_t^first, h_t^middle, h_t^last)),      z_t = z_base,t + alpha a_t
    L = L_pref + lambda_l2 (|a|^2_chosen + |a|^2_rejected) / 2

    L_pref  -log sigmoid(beta [(log pi - log pi_base)(y+) - (log pi - log pi_base)(y-)])

Source: "Modular Alignment Vectors". Its full size is configs/mav.yaml (641.8M parameters at d = 4096, V = 32000);
the default width is the backbone's own. The divergence from the backbone is measured only.
"""

from dual_head.guides.multilayer import MultilayerConfig
from dual_head.losses.kl import Kl
from dual_head.losses.norm import Norm
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method

METHOD = Method(
    name="mav",
    guide=MultilayerConfig(),
    objectives=(
        Preference(weight=1.0, beta=0.1, through="policy", reference_free=False),
        Norm(weight=0.001),
        Kl(weight=0.0),
    ),
    training={
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
    },
    run={"max_length": 512},
    symbols={
        "beta": "preference.beta",
        "lambda_l2": "norm.weight",
        "reference_free": "preference.reference_free",
        "layer_selection": "guide.layers",
        "rank": "guide.rank",
    },
)
