"""L = lambda_y [1 - sigmoid(s beta (r - z_0))], by hand."""

import math

import pytest
import torch

from dual_head.errors import DualHeadError
from dual_head.losses.kl import Kl
from dual_head.losses.kto import Kto
from dual_head.ops.token_scores import Scored

# Rows 0, 2, 4 are three replies, of two, one and one tokens; log pi - log pi_base is 1 + 2, -4 and 0.5.
VALUES = {
    "policy_logps": torch.tensor([-1.0, -2.0, -7.0, -0.5]),
    "base_logps": torch.tensor([-2.0, -4.0, -3.0, -1.0]),
    "kl": torch.tensor([1.0, 3.0, 5.0, 7.0]),
}
ROW = torch.tensor([0, 0, 2, 4])
RATIOS = (3.0, -4.0, 0.5)


def scored(labels=(True, False, True), divergence=0.5) -> Scored:
    return Scored(VALUES, ROW, 3, desirable=torch.tensor(labels), divergence=torch.tensor(divergence))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("divergence", [0.0, 0.5, 3.0])
def test_a_desirable_reply_is_drawn_above_the_divergence_and_another_below(beta, divergence):
    terms = Kto(beta=beta)(scored(divergence=divergence))
    expected = [
        1 - sigmoid(beta * (3.0 - divergence)),
        1 - sigmoid(beta * (divergence - -4.0)),
        1 - sigmoid(beta * (0.5 - divergence)),
    ]
    assert terms.loss.tolist() == pytest.approx(expected)


def test_each_kind_of_reply_has_its_weight():
    terms = Kto(beta=1.0, desirable_weight=3.0, undesirable_weight=0.5)(scored())
    plain = Kto(beta=1.0)(scored())
    assert terms.loss.tolist() == pytest.approx([x * w for x, w in zip(plain.loss.tolist(), (3, 0.5, 3), strict=True)])


@pytest.mark.parametrize("label", [True, False])
def test_a_batch_of_one_kind_has_a_loss_and_a_gradient_of_that_kind(label):
    values = {name: x.clone().requires_grad_(name == "policy_logps") for name, x in VALUES.items()}
    one = Scored(values, ROW, 3, desirable=torch.full((3,), label), divergence=torch.tensor(0.5))
    loss = Kto(beta=1.0)(one).loss
    sign = 1 if label else -1
    slopes = [sigmoid(sign * (r - 0.5)) * (1 - sigmoid(sign * (r - 0.5))) for r in RATIOS]
    assert loss.tolist() == pytest.approx([1 - sigmoid(sign * (r - 0.5)) for r in RATIOS])
    loss.sum().backward()
    gradient = values["policy_logps"].grad.tolist()
    assert gradient == pytest.approx([-sign * slopes[i] for i in (0, 0, 1, 2)], rel=1e-4)


def test_metrics_by_hand():
    metrics = Kto(beta=0.5)(scored(divergence=1.0)).metrics
    assert metrics["reward"].tolist() == pytest.approx([1.5, -2.0, 0.25])
    assert metrics["margin"].tolist() == pytest.approx([1.0, 2.5, -0.25])
    assert metrics["accuracy"].tolist() == [1, 1, 0]
    assert metrics["divergence"].tolist() == [1, 1, 1]


def test_a_hopeless_reply_has_a_finite_loss_and_gradient():
    logps = torch.tensor([-1e6], requires_grad=True)
    far = Scored(
        {"policy_logps": logps, "base_logps": torch.tensor([-1.0])},
        torch.tensor([0]),
        1,
        desirable=torch.tensor([True]),
        divergence=torch.tensor(0.0),
    )
    loss = Kto(beta=1.0)(far).loss
    loss.sum().backward()
    assert loss.tolist() == [1.0]
    assert logps.grad.tolist() == [0.0]


def test_a_term_on_a_reply_is_of_that_reply_alone():
    assert Kl()(scored()).loss.tolist() == [2.0, 5.0, 7.0]
    assert Kl()(Scored(VALUES, ROW, 3)).loss.tolist() == [1.0, 2.5, 3.5]  # of pairs, whose other side is empty here


def test_pairs_are_refused_with_what_would_be_right():
    with pytest.raises(DualHeadError, match="tokenize_feedback"):
        Kto()(Scored(VALUES, ROW, 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"desirable_weight": -1.0}, "desirable_weight must not be negative"),
        ({"undesirable_weight": -1.0}, "undesirable_weight must not be negative"),
    ],
)
def test_options_out_of_bounds_are_refused(options, said):
    with pytest.raises(DualHeadError, match=said):
        Kto(**options)
