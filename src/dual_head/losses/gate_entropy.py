"""Entropy of the gate, to keep it from closing or opening for good."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dual_head.losses.base import LearnsFrom, Objective, Terms
from dual_head.ops.token_scores import Scored, split_sides

BINS = 10


@dataclass(frozen=True, kw_only=True)
class GateEntropy(Objective):
    """L = -H(g) averaged over response tokens, H(g) = -g ln g - (1 - g) ln(1 - g) in nats.

    form: "maximise" minimises -H and so keeps gates apart from 0 and 1; "as_printed" is the sign of the
    Dual-Head paper, +H, which drives them there (docs/provenance, D1). Computed from the gate's logit, where
    it is finite in every dtype. Metrics: mean gate, entropy, and a histogram of `BINS` equal bins.
    """

    weight: float = 0.01
    form: Literal["maximise", "as_printed"] = "maximise"
    learns_from: ClassVar[LearnsFrom] = "both"

    @property
    def needs(self) -> frozenset[str]:
        """The gate's logits."""
        return frozenset({"gate_logit"})

    def __call__(self, scored: Scored) -> Terms:
        """Signed entropy, averaged over both responses of each pair, [B]; zero where the gate is constant."""
        if "gate_logit" not in scored.values:
            return Terms(torch.zeros(scored.pairs, device=scored.row.device))
        s = scored["gate_logit"]
        gate = s.sigmoid()
        entropy = _per_pair(scored, binary_entropy(s))
        metrics = {"gate": _per_pair(scored, gate), "gate_entropy": entropy}
        bins = (gate.detach() * BINS).long().clamp_max(BINS - 1)
        for i in range(BINS):
            metrics[f"gate_hist_{i / BINS:.1f}"] = _per_pair(scored, (bins == i).float())
        return Terms(-entropy if self.form == "maximise" else entropy, metrics)


def binary_entropy(s: Tensor) -> Tensor:
    """H(sigmoid(s)) = softplus(s) - s sigmoid(s) in nats: no logarithm of a rounded 0 or 1."""
    s = s.float()
    return F.softplus(s) - s * s.sigmoid()


def _per_pair(scored: Scored, values: Tensor) -> Tensor:
    chosen, rejected = Scored({"x": values}, scored.row, scored.pairs).sums("x")
    chosen_tokens, rejected_tokens = split_sides(scored.lengths())
    return (chosen + rejected) / (chosen_tokens + rejected_tokens).clamp_min(1)


OBJECTIVE = GateEntropy
