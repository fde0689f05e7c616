"""Parts that guides are made of: a linear map of full or low rank, a pooling of widths, the causal attention gate.

They know hidden states and a slot of the cache; losses, alphas and whole guides are elsewhere.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.features import Features
from dual_head.errors import DualHeadError
from dual_head.ops.linear import AccumulatingLinear, linear
from dual_head.ops.masks import causal_mask
from dual_head.ops.small_matmul import product

# Bytes that a gate's attention may keep for its backward pass. Where sequences are longer it is computed again, so many
# rows at a time as take no more; at the length of a dialogue that would be a twentieth of a step for nothing.
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


def pool(hidden: Tensor, width: int) -> Tensor:
    """Bring [..., d] to [..., width]: adaptive average pooling down, linear interpolation up, nothing when equal."""
    size = hidden.shape[-1]
    if size == width:
        return hidden
    rows = hidden.reshape(-1, 1, size)
    pooled = (
        F.adaptive_avg_pool1d(rows, width)
        if width < size
        else F.interpolate(rows, size=width, mode="linear", align_corners=False)
    )
    return pooled.reshape(*hidden.shape[:-1], width)


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
        self._stacked: Stacked | None = None  # with the maps that it was last summed with, as the first of them
        nn.init.normal_(self.up.weight, std=init_std)
        if bias:
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out], in the dtype of the weights."""
        x = x.to(self.up.weight.dtype)
        return self.up(x if self.down is None else self.down(x))

    def onto(self, x: Tensor, other: Tensor) -> Tensor | None:
        """Map by the sum of this map and another matrix [out, in], in one product; None where it would be inexact.

        A map of low rank is cheaper by itself, and in lower precision rounding takes what it adds to larger weights.
        """
        weight, kind = self.up.weight, x.device.type
        exact = weight.dtype == other.dtype == x.dtype and weight.dtype in (torch.float32, torch.float64)
        if self.down is not None or not exact or x.requires_grad or torch.is_autocast_enabled(kind):
            return None
        return linear(x, weight, self.up.bias, beside=other)

    def matrix(self) -> Tensor:
        """W [out, in], multiplied out."""
        return self.up.weight if self.down is None else self.up.weight @ self.down.weight


class Stacked:
    """Copies of the matrices of low-rank maps, for their weighted sum in two products where each would take two.

    sum_k w_k B_k A_k x = [B_1 | ... | B_K] (w * [A_1; ...; A_K] x)

    code      [ A_1 x | A_2 x | ... | A_K x ]        r_1 + r_2 + ... + r_K columns
    weights   [  w_1  |  w_2  | ... |  w_K  ]        each repeated r_k times
    """

    def __init__(self, maps: Sequence[LinearMap]):
        self._sources = [(x, x._version, x.data_ptr()) for x in _matrices(maps)]
        matrices = [x.detach() for x, *_ in self._sources]
        self._down, self._up = torch.cat(matrices[::2]), torch.cat(matrices[1::2], 1)
        ranks = torch.tensor([len(x) for x in matrices[::2]], device=self._down.device)
        self._column = torch.arange(len(maps), device=self._down.device).repeat_interleave(ranks)

    def is_of(self, maps: Sequence[LinearMap]) -> bool:
        """Whether these are the maps that were copied, and nothing was written into them since."""
        matrices = _matrices(maps)
        return len(matrices) == len(self._sources) and all(
            x is source and x._version == version and x.data_ptr() == address
            for x, (source, version, address) in zip(matrices, self._sources, strict=True)
        )

    def sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]; weights [..., K], in the order of the maps."""
        code = product(x.to(self._down.dtype), self._down)
        return product((code * weights[..., self._column]).to(code.dtype), self._up)


def _matrices(maps: Sequence[LinearMap]) -> list[Tensor]:
    """A_1 [r, in], B_1 [out, r], A_2, ..."""
    return [layer.weight for linear_map in maps for layer in (linear_map.down, linear_map.up) if layer is not None]


def weighted_sum(maps: Sequence[LinearMap], x: Tensor, weights: Tensor) -> Tensor | None:
    """Compute sum_k w_k B_k A_k x of x [..., in] and weights [..., K], as `Stacked` does.

    None where that does not help: with a gradient, of a single map, of full ranks, biases or several dtypes.
    """
    matrices = _matrices(maps)
    low_rank = len(maps) > 1 and len(matrices) == 2 * len(maps) and all(m.up.bias is None for m in maps)
    if not low_rank or torch.is_grad_enabled():
        return None
    if len({(m.dtype, m.device) for m in matrices}) > 1 or any(m.is_inference() for m in matrices):
        return None
    stacked = maps[0]._stacked  # read once: another thread may put that of other maps there
    if stacked is None or not stacked.is_of(maps):
        stacked = maps[0]._stacked = Stacked(maps)
    return stacked.sum(x, weights)


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
        """Map features [B, T, d] to gate logits [B, T], 0 outside the positions that are scored (`keep`)."""
        rows = len(features.hidden)
        has_backward = torch.is_grad_enabled() and cache is None
        size = max(1, KEPT // self._row_bytes(features)) if has_backward else rows
        if size >= rows:
            return self._logits(features, cache)
        # rows   [ 0 1 2 | 3 4 5 | 6 7 ]   each group forgets its attention and computes it again for its gradient
        recomputed = partial(checkpoint, lambda make: self._logits(make(), None), use_reentrant=False)
        return torch.cat([recomputed(make, preserve_rng_state=False) for make in features.groups(size)])

    def _row_bytes(self, features: Features) -> int:
        """How many bytes a row keeps for its backward pass: keys and values, queries and outputs, the mask."""
        length, queries = features.hidden.shape[1], features.hidden[:, features.keep].shape[1]
        width = self.num_heads * self.head_dim
        return (2 * width * (queries + length) + queries * length) * self._dtype(features.hidden).itemsize

    def _dtype(self, hidden: Tensor) -> torch.dtype:
        """Of the products."""
        device = hidden.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.query.weight.dtype

    def _logits(self, features: Features, cache: CacheSlot | None) -> Tensor:
        """Logits [B, T] of some rows.

        keys       [ p p p p | r r r ]       of all T tokens, and of those in the cache before them
        queries            [ p r r r ]       of the scored positions `keep` alone
        logits     [ 0 0 0 s   s s s ]
        """
        dtype, keep = self._dtype(features.hidden), features.keep
        mask, scored, length = features.mask, features.hidden[:, keep], features.hidden.shape[1]
        everywhere = isinstance(keep, slice) and scored.shape[1] == length
        if mask is None and features.padding is not None and cache is None:
            mask = causal_mask(features.padding, length, None, guide_layer=0, device=scored.device)
        q = self._split(self.query(scored.to(dtype)))
        k, v = (self._split(features.of_each(lambda x, f=f: f(x.to(dtype)))) for f in (self.key, self.value))
        if cache is not None:
            k, v = cache.update(k, v)
        visible = None if mask is None else mask[..., keep, :]
        if visible is None and not everywhere:
            columns = torch.arange(length, device=scored.device)
            visible = columns <= columns[keep, None]
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None and length > 1)
        scored_logits = self.output(context.transpose(1, 2).flatten(2)).squeeze(-1)
        if everywhere:
            return scored_logits
        logits = scored_logits.new_zeros(features.hidden.shape[:2])
        logits[:, keep] = scored_logits
        return logits

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # [B, heads, T, width]
