"""The causal gate on vLLM's pages: its keys and values are layers of the paged cache, behind those of the backbone.

    s_t = w . MHA(h_t, H_1:t) + b

Beside layers that all look at everything, it is one layer of a shape of its own. Beside windows, vLLM wants pages of
one size: there its heads are spread over layers of the backbone's shape, if they fit into its heads.

    gate 8 x 48                                  [ 0 1 2 3 4 5 6 7 ]            one layer, 48 of 64 columns in use
    beside a backbone of 3 x 64 with windows     [ 0 1 2 | 3 4 5 | 6 7 . ]      three layers
    on 2 GPUs, the first holds                   [ 0 1 2 3 ]                    its heads 0 to 3, the second 4 to 7

Pages, prefixes, preemption and CUDA graphs of vLLM then hold for the gate too.
"""

import copy
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import get_layers_from_vllm_config
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.attention import Attention

from dual_head.backbone.features import Features
from dual_head.errors import DualHeadError
from dual_head.guides.layers import CausalGate

WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # of heads, that attention on every device has


class PagedGate(nn.Module):
    """Stands where a guide's `CausalGate` stood: the same logits, from vLLM's attention.

    first_layer: the number that vLLM orders the gate's first layer by, after the backbone's.
    """

    def __init__(self, gate: CausalGate, vllm_config: Any, first_layer: int):
        super().__init__()
        self.num_heads, self.head_dim = gate.num_heads, gate.head_dim
        self.size, self.rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self.count = ceil(gate.num_heads / self.size)  # of heads on one GPU
        self.local = range(self.rank * self.count, min((self.rank + 1) * self.count, gate.num_heads))
        model = vllm_config.model_config
        page = (model.get_num_kv_heads(vllm_config.parallel_config), model.get_head_size())
        backbone = get_layers_from_vllm_config(vllm_config, Attention).values()
        spread = any(layer.sliding_window is not None for layer in backbone) and gate.head_dim <= page[1]
        self.heads, self.width = page if spread else (self.count, _width(gate.head_dim))
        cache = copy.copy(vllm_config.cache_config)
        cache.sliding_window = None  # the gate looks at everything, whatever the backbone's layers do
        self.parts = nn.ModuleList(
            Attention(
                self.heads,
                self.width,
                self.width**-0.5,
                num_kv_heads=self.heads,
                cache_config=cache,
                prefix=f"dual_head_gate.{first_layer + i}.attn",  # exactly one number, which is the order
            )
            for i in range(ceil(self.count / self.heads))
        )
        self.kind = model.dtype  # of keys and values
        inner = self.count * gate.head_dim
        self.projection = nn.Parameter(torch.zeros(3, inner, gate.query.in_features), requires_grad=False)
        self.output = nn.Parameter(torch.zeros(inner), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1), requires_grad=False)

    def fill(self, gate: CausalGate) -> None:
        """Take the weights of a gate: those of the heads of this GPU, and zeros where it has fewer than others."""
        # vLLM's layers have the scale of their width: some of its backends want one for all layers.
        scale = (self.width / self.head_dim) ** 0.5
        sources = (scale * gate.query.weight, gate.key.weight, gate.value.weight)
        for target, source in zip(self.projection, sources, strict=True):
            target.copy_(self._of_rank(source.detach()))
        self.output.copy_(self._of_rank(gate.output.weight.detach().T)[:, 0])
        self.bias.copy_(gate.output.bias.detach())

    def _of_rank(self, rows: Tensor) -> Tensor:
        """Rows [heads x width, *] of all heads, as rows [count x width, *] of this GPU's."""
        heads = rows.unflatten(0, (self.num_heads, self.head_dim))[self.local.start : self.local.stop]
        placed = rows.new_zeros(self.count, *heads.shape[1:])
        placed[: len(heads)] = heads
        return placed.flatten(0, 1)

    def forward(self, features: Features, cache: object) -> Tensor:
        """Logits [1, tokens] of features [1, tokens, d]; vLLM knows which tokens are of which request."""
        del cache
        hidden = features.hidden[0].to(self.projection.dtype)
        heads = F.linear(hidden, self.projection.flatten(0, 1)).unflatten(-1, (3, self.count, self.head_dim))
        missing = len(self.parts) * self.heads - self.count
        padded = F.pad(heads, (0, self.width - self.head_dim, 0, missing)).to(self.kind)
        # [tokens, 3, places, width] to queries, keys and values of every layer
        q, k, v = padded.unflatten(2, (len(self.parts), self.heads)).flatten(3).unbind(1)
        mixed = [part(*(x[:, i].contiguous() for x in (q, k, v))) for i, part in enumerate(self.parts)]
        context = torch.cat(mixed, -1).unflatten(-1, (-1, self.width))[:, : self.count, : self.head_dim]
        logits = context.flatten(1).to(self.output.dtype) @ self.output
        if self.size > 1:
            logits = tensor_model_parallel_all_reduce(logits)
        return (logits + self.bias)[None]


def _width(head_dim: int) -> int:
    """The width of a head that holds one of the gate. Errors: none does."""
    for width in WIDTHS:
        if width >= head_dim:
            return width
    raise DualHeadError(f"Heads of a gate are at most {WIDTHS[-1]} wide on vLLM, and this one's are {head_dim}.")
