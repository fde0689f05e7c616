"""What guides cost beside their backbone, for people: built from configs on no device, and without any weights.

It is recorded in config.json whenever guides are saved, so that `dual-head inspect` reads it and builds nothing.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from dual_head.backbone.checkpoint import VOCAB_MAP
from dual_head.backbone.decoder import BackboneShape, Decoder
from dual_head.backbone.load import auto_class
from dual_head.config import AlignedConfig
from dual_head.guides import Guide, build_guide
from dual_head.guides.base import Parameters

logger = logging.getLogger(__name__)


def costs(config: AlignedConfig, sizes: Mapping[str, int]) -> dict[str, Any]:
    """{"backbone": its architecture, parameters and shape; "guides": {name: what it executes, runs and reads}}.

    sizes: how many values each stored tensor has, by its name in the checkpoint. executed: parameters read per
    generated token, beyond the backbone's; forwards: of whole models per token, beyond the backbone's one.
    """
    backbone_config: Any = config.backbone_config
    with torch.device("meta"):
        lm = auto_class(backbone_config).from_config(backbone_config)
        guides = {
            name: build_guide(entry, BackboneShape.from_dict(entry["shape"]))
            for name, entry in (config.guides or {}).items()
        }
    shape, parameters = Decoder(lm).shape, Parameters.of(lm)
    return {
        "backbone": {
            "architecture": type(lm).__name__,
            "parameters": parameters.whole,
            "hidden_size": shape.hidden_size,
            "vocab_size": shape.vocab_size,
            "num_layers": shape.num_layers,
        },
        "guides": {
            name: {
                "executed": guide.executed(sum(_parameters_of(name, sizes).values()), parameters),
                "forwards": guide.extra_forwards,
                "reads": _reads(guide),
            }
            for name, guide in guides.items()
        },
    }


def recorded_costs(config: AlignedConfig, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """`costs`, or None where they cannot be computed: a record for people must never cost a checkpoint."""
    try:
        return costs(config, sizes)
    except Exception as error:  # whatever a model's own code, or files that have moved since, have against it
        logger.info("What the guides cost is not recorded: %s", error)
        return None


def _parameters_of(name: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The stored tensors of one guide that are parameters, so not its map of tokens."""
    return {key: size for key, size in sizes.items() if key.startswith(f"{name}.") and not key.endswith(VOCAB_MAP)}


def _reads(guide: Guide) -> str:
    if guide.reads_tokens:
        return "tokens"
    last = [] if guide.shape.num_layers in guide.hidden_layers else ["last"]
    return "layers " + ", ".join([*map(str, guide.hidden_layers), *last])
