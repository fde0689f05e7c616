"""Steering vectors: what chosen replies have in a layer's hidden states that rejected ones have not.

    d_i = mean_t h_l(x_i, y+_i)_t - mean_t h_l(x_i, y-_i)_t            t over the tokens of the reply, or the last one
    v_l = mean_i d_i                                                   direction "mean"
    v_l = u u' mean_i d_i,   u = first eigenvector of sum_i d_i d_i'   direction "pca"

Sources: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition" (mean); Zou et al. 2023,
"Representation Engineering" (PCA, where v is u itself, of length 1). Either way alpha = 1 adds as much along v as the
pairs differ by on average. One pass over the pairs, without a gradient.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dual_head.data.collate import PairBatch
from dual_head.errors import DualHeadError
from dual_head.guides.steering import SteeringConfig
from dual_head.losses.kl import Kl
from dual_head.losses.preference import Preference
from dual_head.methods.base import Method
from dual_head.methods.fit import FitOptions


@dataclass(frozen=True, kw_only=True)
class SteeringFit(FitOptions):
    """How vectors come from pairs.

    direction: "mean" of the differences, or "pca", their first principal direction; pool: the hidden states of a
    reply's tokens on "mean", or those of its "last" token.
    """

    direction: Literal["mean", "pca"] = "mean"
    pool: Literal["mean", "last"] = "mean"

    def __post_init__(self):
        for name, values in (("direction", ("mean", "pca")), ("pool", ("mean", "last"))):
            if getattr(self, name) not in values:
                raise DualHeadError(f"{name} must be '{values[0]}' or '{values[1]}', not '{getattr(self, name)}'.")

    @torch.no_grad()
    def fit(self, model: Any, name: str, batches: Iterable[PairBatch]) -> dict[str, Any]:
        """Fill the vectors; their lengths, and the share of pairs whose difference points their way, by layer."""
        guide = model.guide(name)
        differences = torch.cat([self._differences(model.backbone, guide.layers, batch) for batch in batches], 1)
        vectors = differences.mean(1)  # [layers, d] of [layers, pairs, d]
        if self.direction == "pca":
            # One matrix product in fp32 a layer; of many pairs the sums of squares are [d, d].
            u = torch.linalg.eigh(differences.mT @ differences).eigenvectors[..., -1]
            vectors = (vectors * u).sum(-1, keepdim=True) * u
        if not vectors.isfinite().all():
            raise DualHeadError("Hidden states are not finite. Load the backbone in another dtype (--dtype float32).")
        guide.vectors.copy_(vectors)
        agreeing = ((differences @ vectors[..., None])[..., 0] > 0).float().mean(1)
        norms = vectors.norm(dim=-1)
        return {
            "layers": [
                {"layer": layer, "norm": norm, "pairs_along": share}
                for layer, norm, share in zip(guide.layers, norms.tolist(), agreeing.tolist(), strict=True)
            ]
        }

    def _differences(self, backbone: Any, layers: tuple[int, ...], batch: PairBatch) -> Tensor:
        """Chosen less rejected, [layers, pairs, d] in fp32."""
        with backbone.keeping(layers) as hidden:
            backbone(batch["input_ids"], position_ids=batch["position_ids"])
        at, row = batch["at"] + 1, batch["row"]  # the reply's tokens themselves: `at` are those that predict them
        counts = torch.tensor(batch["counts"], device=row.device)
        if self.pool == "last":
            at, row = at[counts.cumsum(0) - 1], torch.arange(len(counts), device=row.device)
            counts = torch.ones_like(counts)
        tokens = torch.stack([hidden[layer].flatten(0, 1)[at].float() for layer in layers])
        sums = tokens.new_zeros(len(layers), len(counts), tokens.shape[-1]).index_add(1, row, tokens)
        chosen, rejected = (sums / counts[:, None]).unflatten(1, (-1, 2)).unbind(2)
        return chosen - rejected


METHOD = Method(
    name="steering",
    guide=SteeringConfig(),
    fit=SteeringFit(),
    objectives=(Preference(weight=0.0, beta=0.1, through="policy", reference_free=False), Kl(weight=0.0)),
    symbols={"direction": "fit.direction", "pool": "fit.pool", "layers": "guide.layers", "tokens": "guide.tokens"},
)
