"""A product for few rows is torch's to rounding, whatever its shape, and its bits where nothing is gained."""

import pytest
import torch
import torch.nn.functional as F

from dual_head.ops.small_matmul import BLOCK, BLOCKED, LONG, TURNED, product

OUTPUTS = [5, LONG, LONG + 1, LONG + BLOCK - 1]
ROWS = [0, 1, 2, TURNED, TURNED + 1, 11, BLOCKED, BLOCKED + 1]


def operands(rows: int, outputs: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 24), (outputs, 24), (outputs,))]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("rows", ROWS)
def test_it_is_x_times_the_weights_transpose(rows, outputs, biased):
    x, weight, bias = operands(rows, outputs)
    y = product(x, weight, bias if biased else None)
    torch.testing.assert_close(y, F.linear(x, weight, bias if biased else None), atol=1e-4, rtol=1e-5)
    assert y.is_contiguous()


def test_whatever_stands_before_the_last_axis_stays():
    x, weight, bias = operands(6, LONG)
    batch = x.view(3, 2, 24).transpose(0, 1)
    torch.testing.assert_close(product(batch, weight, bias), F.linear(batch, weight, bias), atol=1e-4, rtol=1e-5)
    assert product(x[0], weight).shape == (LONG,)


@pytest.mark.parametrize("outputs", [5, LONG])
def test_gradients_reach_everything(outputs):
    operand_pair = [x.requires_grad_() for x in operands(2, outputs)]
    (product(*operand_pair) ** 2).sum().backward()
    mine = [x.grad for x in operand_pair]
    for x in operand_pair:
        x.grad = None
    (F.linear(*operand_pair) ** 2).sum().backward()
    assert all(torch.equal(gradient, x.grad) for gradient, x in zip(mine, operand_pair, strict=True))


@pytest.mark.parametrize("outputs", [5, LONG])
def test_other_dtypes_are_torchs_own_and_so_is_autocast(outputs):
    for dtype in (torch.bfloat16, torch.float64):
        x, weight, bias = operands(2, outputs, dtype)
        assert torch.equal(product(x, weight, bias), F.linear(x, weight, bias))
    x, weight, bias = operands(2, outputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(x, weight, bias), F.linear(x, weight, bias))
