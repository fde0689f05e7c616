"""The one line of the architecture: how guides' logit deltas join the backbone's logits.

    logits:          z = z_base + sum_k w_k logit_delta_k                                w_k = alpha_k g_k
    probabilities:   p = (1 - sum_k w_k) p_base + sum_k w_k softmax(z_base + logit_delta_k)

Generation, training and traces all come through here. It knows neither guides, tokens nor losses.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from dual_head.errors import DualHeadError, did_you_mean

Fusion = Literal["logits", "probabilities"]
FUSIONS: tuple[Fusion, ...] = ("logits", "probabilities")

Term = tuple[Tensor | float, Tensor]  # weight alpha * gate, broadcastable to the logit delta [..., V]


def require_fusion(name: str) -> None:
    """Refuse an unknown way to fuse, with the nearest one."""
    if name not in FUSIONS:
        raise DualHeadError(f"Unknown fusion '{name}'.{did_you_mean(name, FUSIONS)}")


def fuse(base: Tensor, terms: Iterable[Term], fusion: str = "logits") -> Tensor:
    """Fuse base logits [..., V] with weighted logit deltas into the policy's logits [..., V].

    A row whose weights are all zero keeps the base's bits under `logits`, beside rows that overflow too.
    `probabilities` needs sum_k w_k <= 1 and returns log-probabilities. Terms are consumed one at a time.
    """
    require_fusion(fusion)
    if fusion == "probabilities":
        return _mixture(base, list(terms))
    fused = base
    for weight, logit_delta in terms:
        fused = add_weighted(fused, weight, logit_delta)
    return fused


def add_weighted(values: Tensor, weight: Tensor | float, delta: Tensor) -> Tensor:
    """values + weight * delta, [..., n]; among rows that are decoded together, 0 * infinity is 0."""
    total = values + weight * delta
    if torch.is_grad_enabled() or not isinstance(weight, Tensor) or weight.numel() == 1:
        return total
    return torch.where(weight == 0, values, total)


def _mixture(base: Tensor, terms: list[Term]) -> Tensor:
    shape = (*base.shape[:-1], 1)
    weights = [torch.as_tensor(w, device=base.device, dtype=torch.float32).expand(shape) for w, _ in terms]
    # Kept off 0 so that neither a logarithm nor its gradient is infinite.
    remainder = (1.0 - sum(weights, base.new_zeros(shape, dtype=torch.float32))).clamp_min(1e-7)
    logp = remainder.log() + base.float().log_softmax(-1)
    for weight, (_, logit_delta) in zip(weights, terms, strict=True):
        reward_logp = (base + logit_delta).float().log_softmax(-1)
        logp = torch.logaddexp(logp, weight.clamp_min(torch.finfo(torch.float32).tiny).log() + reward_logp)
    return logp
