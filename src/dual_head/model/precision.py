"""One model in two precisions, told from two models: by config, by weights, and by what follows a few tokens.

Rounding moves next tokens with the square of what it moves weights. Training moves them far more.
"""

import logging
import math

from transformers import PreTrainedConfig

from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import Fingerprint
from dual_head.backbone.probe import Probe
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.files.reading import COPY, reading

logger = logging.getLogger(__name__)

# |w - w'| / |w| of all matrices. Rounding to 4 bits in blocks of 32 moves them by 0.07 to 0.10, to 3 bits by 0.17 and
# more, and another seed by 1.4.
FARTHEST = 0.12
# Nats that next tokens may differ by, per squared distance of the weights: roundings to bf16, 8, 4 and 3 bits measure
# 5 to 80, and models that were trained further 80 to 300,000 (docs/how-to/published_guides.md).
RATE = 120.0
ARITHMETIC = 0.004  # nats beside it: products in bf16 of the same weights measure 0.002
MOST = 0.6  # nats in all: 4 bits measure 0.5 on 135 million parameters, and less on more
# Keys of a config that do not change what a model computes, or that converters leave out.
IGNORED = (
    *("dtype", "torch_dtype", "quantization_config", "transformers_version", "architectures", "use_cache"),
    *("initializer_range", "attention_dropout", "pretraining_tp", "max_position_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def require_other_precision(config: AlignedConfig, backbone: Backbone, source: str) -> None:
    """Refuse a backbone that is not the one of these guides in another precision; `source` holds them.

        distance = |w - w'| / |w| <= 0.12        KL(recorded || here) <= min(0.6, 120 distance^2 + 0.004) nats

    Errors: what differs; guides that record no probe.
    """
    recorded, current = Fingerprint.from_dict(config.backbone_fingerprint or {}), backbone.fingerprint()
    differences = recorded.size_differences(current) or _config_differences(config.backbone_config, backbone.config)
    if differences:
        raise _another_model(source, backbone, "; ".join(differences))
    if config.backbone_probe is None:
        raise DualHeadError(
            f"The guides in '{source}' do not record what their backbone says of a few tokens, so another precision of "
            "it cannot be told from another model. Load them with the backbone they were trained on, and save them "
            "again with save_pretrained, which records it."
        )
    distance = _distance(recorded, current, backbone)
    if distance > FARTHEST:
        raise _another_model(source, backbone, f"its weights differ by {distance:.0%}, and 4 bits by 12% at most")
    with reading(f"Cannot read backbone_probe in the config.json of '{source}'", COPY):
        divergence = Probe.from_dict(config.backbone_probe).divergence(backbone)
    limit = min(MOST, RATE * distance**2 + ARITHMETIC)
    if not divergence <= limit:  # NaN too
        raise _another_model(
            source,
            backbone,
            f"its next tokens differ by {divergence:.2g} nats on average, and rounding that moves weights by "
            f"{distance:.2%} moves them by {limit:.2g} at most, so it was trained further, or differently",
        )
    logger.warning(
        "'%s' is the backbone of the guides in '%s' in another precision: weights differ by %.2f%%, next tokens by "
        "%.2g nats on average. What was measured of the guides may differ here.",
        backbone.config._name_or_path, source, 100 * distance, divergence,
    )  # fmt: skip


def _distance(recorded: Fingerprint, current: Fingerprint, backbone: Backbone) -> float:
    """The distance of the matrices that both could read; where one has more, they are quantised, to 4 bits at worst."""
    matrices = {name for name, weight in backbone.lm.named_parameters() if weight.dim() > 1}
    distance = recorded.distance(current, matrices & recorded.sketch.keys() & current.sketch.keys())
    whole = recorded.sketch.keys() == current.sketch.keys()
    return distance if whole or (distance > FARTHEST and math.isfinite(distance)) else FARTHEST


def _config_differences(recorded: dict | PreTrainedConfig | None, current: PreTrainedConfig) -> list[str]:
    """Say where the values of both configs differ, of what both have."""
    if not isinstance(recorded, PreTrainedConfig):
        return []
    before, now = recorded.to_dict(), current.to_dict()
    names = sorted(name for name in before.keys() & now.keys() if name not in IGNORED and not name.startswith("_"))
    return [f"{name} {before[name]} against {now[name]}" for name in names if before[name] != now[name]]


def _another_model(source: str, backbone: Backbone, reason: str) -> DualHeadError:
    return DualHeadError(
        f"'{backbone.config._name_or_path}' is not the backbone of the guides in '{source}' in another precision: "
        f"{reason}. Use the model they were trained on, or train them on this one."
    )
