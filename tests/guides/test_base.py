"""What every guide has without saying so, and how the states of several travel together."""

import pytest
import torch

from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides import Guide, GuideConfig, _flaw


class Plain(Guide):
    """A guide that says nothing more than it has to."""

    Config = GuideConfig


def plain() -> Plain:
    return Plain(GuideConfig(), BackboneShape(2, 3, 1))


def test_a_guide_needs_nothing_unless_it_says_so():
    guide = plain()
    assert (guide.cache_layers, guide.hidden_layers, guide.reads_base, guide.extra_forwards) == (0, (), False, 0)
    assert (guide.space, guide.reads_tokens, guide.trainable) == ("vocabulary", False, True)


def test_a_guide_without_a_gate_is_open_and_allows_every_token():
    guide = plain()
    states = guide.encode(Features(torch.randn(1, 2, 2)), None)
    assert (guide.gate_logit(states), guide.gate(states)) == (None, 1.0)
    assert guide.candidates(states, torch.zeros(1, 3)) is None


def test_a_gate_is_the_sigmoid_of_its_logit_in_fp32():
    guide, s = plain(), torch.tensor([0.0, 100.0, -100.0], dtype=torch.bfloat16)
    assert guide.gate_logit({"gate_logit": s}).dtype == torch.float32
    assert guide.gate({"gate_logit": s}).tolist() == pytest.approx([0.5, 1, 0])


def test_the_rewarded_distribution_is_the_backbones_with_the_whole_logit_delta():
    assert plain().reward(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])).tolist() == [[1.5, 1.0]]


@pytest.mark.parametrize(("call", "message"), [("logit_delta", "no logit delta"), ("hidden_delta", "no hidden delta")])
def test_a_space_that_is_not_of_the_guide_is_named(call, message):
    with pytest.raises(NotImplementedError, match=message):
        getattr(plain(), call)({}, *([None] if call == "logit_delta" else []))


def test_a_guide_with_neither_delta_is_refused_by_name():
    assert _flaw(Plain) == "Plain defines neither logit_delta nor hidden_delta"
    assert _flaw(type("Written", (Plain,), {"logit_delta": lambda self, states, base: base})) is None
