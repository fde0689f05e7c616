"""Parts that guides are made of: a linear map of full or low rank, and the causal attention gate.

They know hidden states and a slot of the cache; losses, alphas and whole guides are elsewhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dual_head.accumulation import AccumulatingLinear
from dual_head.backbone import Features
from dual_head.cache import CacheSlot
from dual_head.errors import DualHeadError

# What attention keeps for its backward pass, in bytes, beyond which it is computed again: it grows with the sequences,
# and at the length of a dialogue computing it again would be a twelfth of a step.
KEPT = 2**24


def require_positive(**sizes: int | None) -> None:
    """Refuse sizes below 1, by their names; None means the option is off."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            off = ", or null for a full one" if name == "rank" else ""
            raise DualHeadError(f"{name} must be at least 1{off}, not {size}.")


def require_not_negative(**values: float) -> None:
    """Refuse values below 0, by their names."""
    for name, value in values.items():
        if value < 0:
            raise DualHeadError(f"{name} must not be negative, but is {value}.")


class LinearMap(nn.Module):
    """x -> W x + b with W [out, in] of full rank, or W = B A with r (in + out) parameters; zero at the start.

    A low-rank A starts as a random projection, so that gradients reach B at once. init_std above 0 starts W
    (or B) from a normal distribution instead of zero.
    """

    def __init__(
        self, inputs: int, outputs: int, *, rank: int | None = None, bias: bool = False, init_std: float = 0.0
    ):
        super().__init__()
        self.down = None if rank is None else AccumulatingLinear(inputs, rank, bias=False)
        self.up = AccumulatingLinear(inputs if rank is None else rank, outputs, bias=bias)
        nn.init.normal_(self.up.weight, std=init_std)
        if bias:
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out], in the dtype of the weights."""
        x = x.to(self.up.weight.dtype)
        return self.up(x if self.down is None else self.down(x))

    def matrix(self) -> Tensor:
        """W [out, in], multiplied out."""
        return self.up.weight if self.down is None else self.up.weight @ self.down.weight


class CausalGate(nn.Module):
    """The logit of the gate, s_t = w . MHA(h_t, H_1:t) + b: 3 d (heads x width) + heads x width + 1 parameters.

    W_O is left out: followed by a single output row, W_g W_O is itself one vector.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.query = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.output = nn.Linear(num_heads * head_dim, 1)
        nn.init.zeros_(self.output.bias)  # gates start near one half, where the sigmoid is steepest

    def forward(self, features: Features, cache: CacheSlot | None) -> Tensor:
        """Map features [B, T, d] to gate logits [B, T], 0 where nobody will ask for logits (`keep`)."""
        kind = features.hidden.device.type
        autocast = torch.is_autocast_enabled(kind)
        hidden = features.hidden.to(torch.get_autocast_dtype(kind) if autocast else self.query.weight.dtype)
        asked = hidden[:, features.keep]
        if isinstance(features.keep, slice) and asked.shape[1] == hidden.shape[1]:
            return self._logits(hidden, hidden, features.mask, cache)
        at = torch.arange(hidden.shape[1], device=hidden.device)
        mask = at <= at[features.keep, None] if features.mask is None else features.mask[..., features.keep, :]
        own = self._logits(asked, hidden, mask, cache)
        logits = own.new_zeros(hidden.shape[:2])
        logits[:, features.keep] = own
        return logits

    def _logits(self, asked: Tensor, hidden: Tensor, mask: Tensor | None, cache: CacheSlot | None) -> Tensor:
        width = self.num_heads * self.head_dim
        kept = 2 * width * (asked[..., 0].numel() + hidden[..., 0].numel()) * hidden.itemsize
        if torch.is_grad_enabled() and cache is None and kept > KEPT:
            own = (asked, hidden, mask, cache)
            return checkpoint(self._attended, *own, use_reentrant=False, preserve_rng_state=False)
        return self._attended(asked, hidden, mask, cache)

    def _attended(self, asked: Tensor, hidden: Tensor, mask: Tensor | None, cache: CacheSlot | None) -> Tensor:
        q, k, v = self._split(self.query(asked)), self._split(self.key(hidden)), self._split(self.value(hidden))
        if cache is not None:
            k, v = cache.update(k, v)
        causal = mask is None and q.shape[-2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2)).squeeze(-1)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # [B, heads, T, width]


def gated(gate: CausalGate | None, features: Features, cache: CacheSlot | None) -> dict[str, Tensor]:
    """The states of a guide that reads h_t alone: "hidden", and "gate_logit" where there is a gate."""
    own = {} if gate is None else {"gate_logit": gate(features, cache)}
    return {"hidden": features.hidden, **own}
