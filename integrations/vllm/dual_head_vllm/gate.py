"""The causal gate on vLLM's pages: its keys and values are layers of the paged cache, behind those of the backbone.

    s_t = w . MHA(h_t, H_1:t) + b

Where a head of the gate fits into one of the backbone, heads are spread over layers of the backbone's own shape, so
that all pages have one size; else they get a layer of their own width. What is left over is zeros.

    gate 8 x 48 beside a backbone of 3 x 64   [ 0 1 2 | 3 4 5 | 6 7 . ]    three layers, 48 of 64 columns in use
    of 2 GPUs, the first holds                [ 0 1 2 | 3 . . ]            its heads 0 to 3, the second 4 to 7

Pages, prefixes, preemption and CUDA graphs of vLLM then hold for the gate too.
"""

import copy
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
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
        local = ceil(gate.num_heads / self.size)
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        page_heads, page_width = model.get_num_kv_heads(parallel), model.get_head_size()
        spread = gate.head_dim <= page_width
        self.heads, self.width = (page_heads, page_width) if spread else (local, _width(gate.head_dim))
        cache = copy.copy(vllm_config.cache_config)
        cache.sliding_window = None  # the gate looks at everything, whatever the backbone's layers do
        self.parts = nn.ModuleList(
            Attention(
                self.heads,
                self.width,
                gate.head_dim**-0.5,
                num_kv_heads=self.heads,
                cache_config=cache,
                prefix=f"dual_head_gate.{first_layer + i}.attn",  # exactly one number, which is the order
            )
            for i in range(ceil(local / self.heads))
        )
        self.local = range(self.rank * local, min((self.rank + 1) * local, gate.num_heads))
        self.kind = model.dtype  # of keys and values
        places = len(self.parts) * self.heads * self.width
        hidden_size = gate.query.in_features
        self.projection = nn.Parameter(torch.zeros(3, places, hidden_size), requires_grad=False)
        self.output = nn.Parameter(torch.zeros(places), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1), requires_grad=False)

    def fill(self, gate: CausalGate) -> None:
        """Take the weights of a gate: those of the heads of this rank, and zeros between them."""
        sources = (gate.query.weight, gate.key.weight, gate.value.weight)
        for target, source in zip(self.projection, sources, strict=True):
            target.copy_(self._placed(source.detach()))
        self.output.copy_(self._placed(gate.output.weight.detach().T)[:, 0])
        self.bias.copy_(gate.output.bias.detach())

    def _placed(self, rows: Tensor) -> Tensor:
        """Rows [gate heads x gate width, *] of all heads, as rows [places, *] of this rank's layers."""
        heads = rows.unflatten(0, (self.num_heads, self.head_dim))[self.local.start : self.local.stop]
        placed = rows.new_zeros(len(self.parts) * self.heads, self.width, *rows.shape[1:])
        placed[: len(heads), : self.head_dim] = heads
        return placed.flatten(0, 1)

    def forward(self, features: Features, cache: object) -> Tensor:
        """Logits [1, tokens] of features [1, tokens, d]; vLLM knows which tokens are of which request."""
        del cache
        hidden = features.hidden[0].to(self.projection.dtype)
        projected = torch.matmul(hidden, self.projection.flatten(0, 1).T).to(self.kind)
        # [tokens, 3 places] to queries, keys and values of every layer
        q, k, v = projected.unflatten(-1, (3, len(self.parts), -1)).unbind(1)
        mixed = [part(*(x[:, i].contiguous() for x in (q, k, v))) for i, part in enumerate(self.parts)]
        logits = torch.cat(mixed, -1).to(self.output.dtype) @ self.output
        if self.size > 1:
            logits = tensor_model_parallel_all_reduce(logits)
        return (logits + self.bias)[None]


def _width(head_dim: int) -> int:
    """The width of a head that holds one of the gate. Errors: none does."""
    for width in WIDTHS:
        if width >= head_dim:
            return width
    raise DualHeadError(f"Heads of a gate are at most {WIDTHS[-1]} wide on vLLM, and this one's are {head_dim}.")
