"""The multi-layer guide of MAV: hidden states of several layers, fused, and mapped to the vocabulary by an MLP.

    u_t = [pool(norm(h_t^1)); ...; pool(norm(h_t^m))]        each pooled to a fixed width p
    delta_t = W_2 relu(W_1 relu(W_f u_t))

Each layer is divided by its root mean square, since scales differ by orders of magnitude between layers; the
pooling has no parameters, so that the guide fits a backbone of any width. Only the layers it needs are kept.
This file knows nothing of losses or of other guides.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.errors import DualHeadError
from dual_head.guides.base import Guide, GuideConfig, States
from dual_head.guides.layers import LinearMap, pool, require_positive

MAV_WIDTH = 4096
MAV_MLP_WIDTH = 16384


@dataclass(frozen=True, kw_only=True)
class MultilayerConfig(GuideConfig):
    """Options of the multi-layer guide.

    layers: "auto" (first, middle and last), "uniform" (num_layers of them, evenly spaced) or "custom" (those
    in layer_indices; 0 is the embedding, negative ones count from the last); width: what each layer is pooled
    to, None for the backbone's own up to 4096; mlp_width: None for twice the width (16384 at width 4096, as
    published); rank: of the last matrix, None for full; normalise: divide each layer by its root mean square;
    dropout: after the fusion, while training.
    """

    layers: Literal["auto", "uniform", "custom"] = "auto"
    num_layers: int = 3
    layer_indices: list[int] | None = None
    width: int | None = None
    mlp_width: int | None = None
    rank: int | None = None
    normalise: bool = True
    dropout: float = 0.0

    def __post_init__(self):
        if self.layers not in ("auto", "uniform", "custom"):
            raise DualHeadError(f"layers must be 'auto', 'uniform' or 'custom', not '{self.layers}'.")
        if (self.layers == "custom") != bool(self.layer_indices):
            raise DualHeadError("layer_indices goes with layers=custom: give both, or neither.")
        if not 0 <= self.dropout < 1:
            raise DualHeadError(f"dropout must lie in [0, 1), not {self.dropout}.")
        sizes = {"num_layers": self.num_layers, "width": self.width, "mlp_width": self.mlp_width, "rank": self.rank}
        require_positive(**sizes)


class Multilayer(Guide):
    """delta_t = W_2 relu(W_1 relu(W_f u_t)). Source: MAV, as docs/provenance explains."""

    Config = MultilayerConfig
    config: MultilayerConfig

    def __init__(self, config: MultilayerConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.width = config.width or min(shape.hidden_size, MAV_WIDTH)
        mlp_width = config.mlp_width or (MAV_MLP_WIDTH if self.width == MAV_WIDTH else 2 * self.width)
        self.fusion = nn.Linear(len(self.hidden_layers) * self.width, self.width)
        self.mlp = nn.Linear(self.width, mlp_width)
        self.head = LinearMap(mlp_width, shape.vocab_size, rank=config.rank, bias=True)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The chosen layers of a backbone with n: 1 to n are what layers give, 0 the embedding."""
        n = self.shape.num_layers
        if self.config.layers == "auto":
            return tuple(sorted({1, (n + 1) // 2, n}))
        if self.config.layers == "uniform":
            picks = torch.linspace(1, n, min(self.config.num_layers, n), device="cpu").round().int().tolist()
            return tuple(sorted(set(picks)))
        indices = [i + n + 1 if i < 0 else i for i in self.config.layer_indices or ()]
        if not all(0 <= i <= n for i in indices):
            raise DualHeadError(
                f"layer_indices {self.config.layer_indices} do not fit a backbone of {n} layers: 0 (the embedding) "
                f"to {n}, or -{n + 1} to -1."
            )
        return tuple(sorted(set(indices)))

    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Normalise, pool and fuse the layers: [B, T, d] each to "fused" [B, T, width]."""
        del cache
        layers = [features.layers[i].float() for i in self.hidden_layers]
        if self.config.normalise:
            layers = [F.rms_norm(x, x.shape[-1:], eps=1e-6) for x in layers]
        pooled = torch.cat([pool(x, self.width) for x in layers], -1)  # [B, T, m width]
        return {"fused": self.dropout(F.relu(self.fusion(pooled.to(self.fusion.weight.dtype))))}

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """W_2 relu(W_1 fused), [n, width] to [n, V]."""
        del base
        return self.head(F.relu(self.mlp(states["fused"])))


GUIDE = Multilayer
