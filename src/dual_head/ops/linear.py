"""Gradients of weights that many chunks of tokens share, added up in one buffer per weight.

autograd allocates the gradient of every chunk, as large as the weight, before it is added to the last one. A weight of
[V, d] is larger than a chunk of its logits, so that is where the memory of a step goes, and a tenth of its time. Inside
`accumulating`, `linear` adds its weight's gradient where the others are. It knows weights, and neither guides nor
losses.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dual_head.ops.small_matmul import product

SLICE = 2048  # rows of a matrix at a time that are added up, or of a gradient in lower precision: what a cache keeps
# The attribute of a weight that holds its sink. On GPUs backward passes, and what they compute again, run in other
# threads, which see the weight and not the context of the thread that began.
SINK = "gradient_sink"


class Sink:
    """What the chunks so far have added to the gradient of one weight; `total` None before the first."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.total: Tensor | None = None
        self._cast = weight.detach()

    def operand(self, dtype: torch.dtype) -> Tensor:
        """The weight in the dtype of a product, cast once."""
        if self._cast.dtype != dtype:
            self._cast = self.weight.detach().to(dtype)
        return self._cast

    def add(self, dy: Tensor, x: Tensor) -> None:
        """Add dy' x, of dy [n, out] and x [n, in]."""
        if dy.dtype == self.weight.dtype:
            self.total = torch.mm(dy.T, x) if self.total is None else self.total.addmm_(dy.T, x)
            return
        # In lower precision the product is cast as it is added, some rows of the weight at a time:
        #   dy [n, out] = [ n x SLICE | n x SLICE | ... ],  total [out, in] = [ SLICE x in; SLICE x in; ... ]
        first, self.total = self.total is None, torch.empty_like(self.weight) if self.total is None else self.total
        for rows, part in zip(self.total.split(SLICE), dy.split(SLICE, dim=-1), strict=True):
            gradient = torch.mm(part.T, x)
            rows.copy_(gradient) if first else rows.add_(gradient)


@contextmanager
def accumulating(weights: Iterable[Tensor]) -> Iterator[list[Sink]]:
    """Have `linear` add up the gradients of these weights, in sinks of their order; autograd gives None for them."""
    sinks = [Sink(weight) for weight in weights]
    if any(hasattr(sink.weight, SINK) for sink in sinks):
        raise RuntimeError("The gradients of these weights are being added up already.")
    for sink in sinks:
        setattr(sink.weight, SINK, sink)
    try:
        yield sinks
    finally:
        for sink in sinks:
            delattr(sink.weight, SINK)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, beside: Tensor | None = None) -> Tensor:
    """Compute x W' + b as torch does, x [*, in] and W [out, in]; or x (W + beside)' + b, with `beside` a constant."""
    sink = getattr(weight, SINK, None) if weight.requires_grad and torch.is_grad_enabled() else None
    if sink is None and beside is None:
        return F.linear(x, weight, bias)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    # The weight is handed over although its gradient goes elsewhere: without it nothing would ask for a backward pass.
    y = _Linear.apply(x.to(dtype), weight, sink, beside)
    return y if bias is None else y + bias.to(dtype)  # type: ignore[operator]


class AccumulatingLinear(nn.Linear):
    """torch's linear layer, whose weight's gradient is added up in one buffer inside `accumulating`.

    Without a gradient it is `small_matmul.product`, which has a faster way for the few rows of a step of decoding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x W' + b."""
        function = linear if torch.is_grad_enabled() else product
        return function(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sink: Sink | None, beside: Tensor | None) -> Tensor:
        ctx.sink, ctx.beside = sink, beside
        ctx.save_for_backward(x, weight)
        rows, matrix = x.flatten(0, -2), weight if sink is None else sink.operand(x.dtype)
        y = x.new_empty(len(rows), len(weight))
        if beside is None:
            torch.mm(rows, matrix.T, out=y)
        else:
            # W + beside, some outputs at a time: the whole sum is never held, and each part of it is still in a cache
            # when it is multiplied.
            buffer = torch.empty_like(matrix[:SLICE])
            for columns, part, other in zip(y.split(SLICE, 1), matrix.split(SLICE), beside.split(SLICE), strict=True):
                torch.mm(rows, torch.add(part, other, out=buffer[: len(part)]).T, out=columns)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        dx = dw = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                matrix = weight if ctx.sink is None else ctx.sink.operand(dy.dtype)
                dx = dy @ matrix if ctx.beside is None else dy @ matrix + dy @ ctx.beside
            if ctx.needs_input_grad[1] and ctx.sink is not None:
                ctx.sink.add(dy.flatten(0, -2), x.flatten(0, -2))
            elif ctx.needs_input_grad[1]:
                dw = torch.mm(dy.flatten(0, -2).T, x.flatten(0, -2))
        return dx, dw, None, None
