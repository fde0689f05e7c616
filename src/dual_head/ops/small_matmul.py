"""A product with a weight for the few rows that a step of decoding has.

    x W' + b,   x [n, in], W [out, in]

Reading W takes longest, and the products that BLAS libraries make for many rows read it at a fraction of the memory's
speed where there are few. It knows shapes and devices, and no model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# What MKL does better with in fp32; in bf16 it does as well by itself. Up to TURNED rows W x' is faster than x W', and
# where W is as long as a vocabulary, blocks of it are faster than the whole for up to BLOCKED rows.
TURNED, BLOCKED = 4, 128
LONG, BLOCK = 4096, 128  # outputs


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W' + b as torch does, to rounding: x [*, in], W [out, in], b [out]."""
    rows, outputs = x.shape[:-1].numel(), len(weight)
    long = outputs >= LONG
    if not (1 if long else 2) <= rows <= (BLOCKED if long else TURNED) or not _plain(x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    y = _in_blocks(flat, weight) if long else torch.mm(weight, flat.T).T.contiguous()
    y = y.view(*x.shape[:-1], outputs)
    return y if bias is None else y.add_(bias)


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product in fp32 on a processor without a gradient."""
    if weight.device.type != "cpu" or not weight.dtype == x.dtype == torch.float32:
        return False
    graded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return not (graded or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


def _in_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """x W' of [n, in] and [out, in], so many outputs at a time."""
    # W [out, in]   [ block 0; block 1; ...; remainder ]        blocks of BLOCK outputs, multiplied as one batch
    count, rows = len(weight) // BLOCK, len(x)
    outputs = count * BLOCK
    blocks, remainder = weight[:outputs].view(count, BLOCK, -1), weight[outputs:]
    if rows <= TURNED:
        y = torch.bmm(blocks, x.T.expand(count, -1, -1)).view(outputs, rows).T
    else:
        y = torch.bmm(x.expand(count, -1, -1), blocks.mT).transpose(0, 1).reshape(rows, outputs)
    return torch.cat([y, torch.mm(x, remainder.T)], 1) if len(remainder) else y.contiguous()
