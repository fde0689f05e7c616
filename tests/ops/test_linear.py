"""Gradients of shared weights: what is added up in one buffer is what autograd would have given."""

import pytest
import torch
import torch.nn.functional as F

from dual_head.ops.linear import SLICE, accumulating, linear


def parts(rows: int = 6, inputs: int = 3, outputs: int = 5):
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    x = torch.randn(rows, inputs, requires_grad=True)
    return weight, x, torch.randn(rows, outputs)


def test_outside_it_is_a_linear_map_of_torch_to_the_bit():
    weight, x, _ = parts()
    bias = torch.randn(5)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_chunks_add_up_to_the_gradient_of_the_whole():
    weight, x, c = parts()
    (F.linear(x, weight) * c).sum().backward()
    results = []
    with accumulating([weight]) as (sink,):
        for at in (slice(0, 4), slice(4, 6)):
            rows = x[at].detach().requires_grad_()
            y = linear(rows, weight)
            assert torch.equal(y, F.linear(rows, weight))
            dx, dw = torch.autograd.grad((y * c[at]).sum(), [rows, weight], allow_unused=True)
            assert dw is None  # autograd has nothing left to add
            results.append(dx)
    torch.testing.assert_close(sink.total, weight.grad)
    torch.testing.assert_close(torch.cat(results), x.grad)


def test_the_second_chunk_is_added_where_the_first_one_is():
    weight, x, _ = parts()
    with accumulating([weight]) as (sink,):
        torch.autograd.grad(linear(x, weight).sum(), weight, allow_unused=True)
        place = sink.total.data_ptr()
        torch.autograd.grad(linear(x, weight).sum(), weight, allow_unused=True)
        assert sink.total.data_ptr() == place


def test_products_in_lower_precision_add_up_in_the_precision_of_the_weight():
    """bf16 has 8 bits: adding 1 a thousand times would stop at 256."""
    weight = torch.zeros(SLICE + 1, 2, requires_grad=True)
    x = torch.ones(1, 2)
    with accumulating([weight]) as (sink,), torch.autocast("cpu", torch.bfloat16):
        for _ in range(300):
            y = linear(x, weight)
            assert y.dtype == torch.bfloat16
            torch.autograd.grad(y.sum(), weight, allow_unused=True)
    assert sink.total.dtype == torch.float32
    assert torch.equal(sink.total, torch.full_like(weight, 300.0))  # every slice of it


def test_a_bias_and_any_number_of_dimensions_are_as_in_torch():
    weight, x, _ = parts()
    x, bias = x.detach().view(2, 3, 3), torch.randn(5, requires_grad=True)
    with accumulating([weight]) as (sink,):
        y = linear(x, weight, bias)
        torch.testing.assert_close(y, F.linear(x, weight, bias))
        (db,) = torch.autograd.grad(y.sum(), [bias], retain_graph=True)
        assert torch.equal(db, torch.full((5,), 6.0))
        torch.autograd.grad(y.sum(), weight, allow_unused=True)
    torch.testing.assert_close(sink.total, x.sum((0, 1)).expand(5, 3))


def test_a_weight_that_takes_part_in_another_way_too_keeps_that_gradient():
    weight, x, _ = parts()
    with accumulating([weight]) as (sink,):
        (dw,) = torch.autograd.grad(linear(x, weight).sum() + weight.square().sum(), weight)
    torch.testing.assert_close(dw, 2 * weight)
    torch.testing.assert_close(sink.total, x.sum(0).expand(5, 3))


def test_nothing_is_kept_when_it_ends_or_fails():
    weight, x, _ = parts()
    with pytest.raises(ZeroDivisionError), accumulating([weight]):
        raise ZeroDivisionError
    (dw,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    torch.testing.assert_close(dw, x.sum(0).expand(5, 3))


def test_one_inside_another_of_the_same_weight_is_refused():
    weight, _, _ = parts()
    with accumulating([weight]), pytest.raises(RuntimeError, match="already"), accumulating([weight]):
        pass


def test_without_gradients_it_is_a_plain_map():
    weight, x, _ = parts()
    with accumulating([weight]) as (sink,), torch.no_grad():
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert sink.total is None
