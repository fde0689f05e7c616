"""L = -H(g), by hand; finite at every gate in every dtype."""

import math

import pytest
import torch

from dual_head.losses.gate_entropy import GateEntropy, binary_entropy
from dual_head.ops.token_scores import Scored


def logit(g: float) -> float:
    return math.log(g / (1 - g))


def entropy(g: float) -> float:
    return -g * math.log(g) - (1 - g) * math.log(1 - g)


# Pair 0 has gates .1 and .3 in the chosen response and .55 in the rejected; pair 1 has .9, and .9.
GATES = [0.1, 0.3001, 0.55, 0.9001, 0.9001]
SCORED = Scored({"gate_logit": torch.tensor([logit(g) for g in GATES])}, torch.tensor([0, 0, 1, 2, 3]), pairs=2)
MEAN = [(entropy(0.1) + entropy(0.3001) + entropy(0.55)) / 3, entropy(0.9001)]


@pytest.mark.parametrize(("form", "sign"), [("maximise", -1), ("as_printed", 1)])
def test_entropy_is_averaged_over_the_tokens_of_both_responses(form, sign):
    assert GateEntropy(form=form)(SCORED).loss.tolist() == pytest.approx([sign * h for h in MEAN])


def test_metrics_by_hand():
    metrics = GateEntropy()(SCORED).metrics
    assert metrics["gate"].tolist() == pytest.approx([(0.1 + 0.3001 + 0.55) / 3, 0.9001])
    assert metrics["gate_entropy"].tolist() == pytest.approx(MEAN)
    filled = {name[-3:]: x.tolist() for name, x in metrics.items() if name.startswith("gate_hist") and x.any()}
    assert filled.keys() <= {"0.0", "0.1", "0.3", "0.5", "0.9"}  # a gate of .1 may round to either side
    assert filled["0.3"] == filled["0.5"] == pytest.approx([1 / 3, 0])
    assert filled["0.9"] == [0, 1]
    assert sum(torch.tensor(x) for x in filled.values()).tolist() == pytest.approx([1, 1])


def test_a_fully_open_gate_is_in_the_last_bin():
    scored = Scored({"gate_logit": torch.tensor([100.0, 100.0])}, torch.tensor([0, 1]), pairs=1)
    assert GateEntropy()(scored).metrics["gate_hist_0.9"].tolist() == [1]


def test_a_constant_gate_has_no_loss():
    scored = Scored({}, torch.tensor([0, 1]), pairs=1)
    terms = GateEntropy()(scored)
    assert terms.loss.tolist() == [0]
    assert terms.metrics == {}


@pytest.mark.parametrize("g", [1e-6, 0.01, 0.5, 0.8, 0.999])
def test_entropy_from_the_logit_is_the_textbook_entropy(g):
    s = torch.tensor(logit(g), requires_grad=True)
    h = binary_entropy(s)
    h.backward()
    assert h.item() == pytest.approx(entropy(g), rel=1e-4, abs=1e-6)
    assert s.grad.item() == pytest.approx(-logit(g) * g * (1 - g), rel=1e-3, abs=1e-6)  # dH/ds = -s g (1 - g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entropy_is_finite_and_not_negative_at_every_logit(dtype):
    s = torch.tensor([-1e4, -100, -20, -7, 0, 7, 20, 100, 1e4], dtype=dtype, requires_grad=True)
    h = binary_entropy(s)
    h.sum().backward()
    assert h.isfinite().all()
    assert (h >= 0).all()
    assert s.grad.isfinite().all()
