"""z = z_base + sum_k w_k logit_delta_k, or a mixture of probabilities."""

import math

import pytest
import torch

from dual_head.model.fusion import fuse

BASE = torch.tensor([[1.0, 0.0, -1.0]])
UP, DOWN = torch.tensor([[0.5, 2.0, 0.0]]), torch.tensor([[-1.0, 0.0, 4.0]])


def test_logits_add_up_by_weight():
    fused = fuse(BASE, [(0.5, UP), (torch.tensor([[0.25]]), DOWN)])
    by_hand = [1 + 0.5 * 0.5 + 0.25 * -1, 0 + 0.5 * 2 + 0, -1 + 0 + 0.25 * 4]
    assert fused.tolist() == [by_hand]


def test_no_guide_is_the_base_itself():
    assert fuse(BASE, []) is BASE


def test_a_row_of_weight_zero_keeps_its_bits_beside_one_that_does_not():
    base, logit_delta = torch.randn(2, 97), torch.randn(2, 97)
    fused = fuse(base, [(torch.tensor([[0.0], [1.5]]), logit_delta)])
    assert torch.equal(fused[0], base[0])
    assert torch.equal(fused[1], base[1] + 1.5 * logit_delta[1])


def test_terms_are_consumed_one_at_a_time():
    happened = []

    class Weight(float):
        def __mul__(self, logit_delta):
            happened.append(f"used {self:.0f}")
            return float(self) * logit_delta

    def terms():
        for weight in (1, 2):
            happened.append(f"made {weight}")
            yield Weight(weight), UP

    assert torch.equal(fuse(BASE, terms()), BASE + UP + 2 * UP)
    assert happened == ["made 1", "used 1", "made 2", "used 2"]


def softmax(*logits: float) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def test_probabilities_mix_by_weight():
    p = fuse(BASE, [(0.3, UP), (torch.tensor([[0.2]]), DOWN)], "probabilities").exp()
    base, up, down = softmax(1, 0, -1), softmax(1.5, 2, -1), softmax(0, 0, 3)
    by_hand = [0.5 * b + 0.3 * u + 0.2 * d for b, u, d in zip(base, up, down, strict=True)]
    torch.testing.assert_close(p, torch.tensor([by_hand]))


@pytest.mark.parametrize(("weight", "alone"), [(0.0, BASE), (1.0, BASE + UP)])
def test_at_its_ends_a_mixture_is_one_distribution(weight, alone):
    mixed = fuse(BASE, [(weight, UP)], "probabilities")
    torch.testing.assert_close(mixed.exp(), alone.softmax(-1), atol=1e-6, rtol=1e-5)


def test_mixed_probabilities_sum_to_one_and_have_finite_gradients_at_both_ends():
    logit_delta = torch.randn(3, 97, requires_grad=True)
    weight = torch.tensor([[0.0], [0.5], [1.0]], requires_grad=True)
    mixed = fuse(torch.randn(3, 97), [(weight, logit_delta)], "probabilities")
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(3))
    mixed.sum().backward()
    assert logit_delta.grad.isfinite().all()
    assert weight.grad.isfinite().all()
