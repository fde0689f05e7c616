"""delta = g (W_RM h - W_LM h), by hand; what a fresh guide is, how it wakes up, and how large it is."""

import math

import pytest
import torch
from torch import nn

from dual_head import DualHeadError, RewardHeadConfig
from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides.layers import CausalGate
from dual_head.guides.reward_head import RewardHead
from dual_head.model.policy import ActiveGuide

SMALL = BackboneShape(hidden_size=2, vocab_size=3, num_layers=1)
W_LM = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
W_RM = torch.tensor([[2.0, 0.0], [0.0, -1.0], [1.0, 2.0]])


def head(shape: BackboneShape = SMALL, seed: int = 0, **options) -> RewardHead:
    torch.manual_seed(seed)
    return RewardHead(RewardHeadConfig(**{"num_heads": 1, "head_dim": 2, **options}), shape)


def delta(guide: RewardHead, hidden: torch.Tensor) -> torch.Tensor:
    states = guide.encode(Features(hidden), None)
    return ActiveGuide(guide, states, 1.0).weight * guide.logit_delta(states, None)


# ---- the equation ------------------------------------------------------------------------------------------


def test_delta_is_the_gate_times_the_difference_of_the_heads():
    guide = head(gate="constant", gate_value=0.25)
    guide.difference.up.weight.data = W_RM - W_LM
    h = torch.tensor([3.0, 5.0])
    z_lm, z_rm = [3, 5, 3 + 5], [2 * 3, -5, 3 + 2 * 5]
    by_hand = [0.25 * (rm - lm) for rm, lm in zip(z_rm, z_lm, strict=True)]
    assert delta(guide, h[None, None])[0, 0].tolist() == by_hand


def test_the_gate_is_a_sigmoid_of_attention_over_the_past():
    guide = head()
    gate = guide.causal_gate
    eye = torch.eye(2)
    gate.query.weight.data, gate.key.weight.data, gate.value.weight.data = eye, eye, eye
    gate.output.weight.data, gate.output.bias.data = torch.tensor([[1.0, -1.0]]), torch.tensor([0.5])
    h1, h2 = [1.0, 0.0], [2.0, 1.0]
    # Scores of h2 over the square root of the width 2; h1 sees itself alone.
    to_h1, to_h2 = math.exp((2 * 1 + 1 * 0) / math.sqrt(2)), math.exp((2 * 2 + 1 * 1) / math.sqrt(2))
    mixed = [(to_h1 * a + to_h2 * b) / (to_h1 + to_h2) for a, b in zip(h1, h2, strict=True)]
    s = [1 - 0 + 0.5, mixed[0] - mixed[1] + 0.5]
    states = guide.encode(Features(torch.tensor([[h1, h2]])), None)
    torch.testing.assert_close(guide.gate_logit(states), torch.tensor([s]))
    torch.testing.assert_close(guide.gate(states), torch.tensor([[1 / (1 + math.exp(-x)) for x in s]]))


def test_heads_attend_apart_and_their_widths_add_up():
    """Two heads of width 2 are two attentions, each over its half of the projections."""
    two, hidden = head(num_heads=2, head_dim=2).causal_gate, torch.randn(1, 4, 2)
    total = torch.full((1, 4), two.output.bias.item())
    for half in (slice(0, 2), slice(2, 4)):
        one = CausalGate(2, 1, 2)
        for name in ("query", "key", "value"):
            getattr(one, name).weight.data = getattr(two, name).weight.data[half]
        one.output.weight.data = two.output.weight.data[:, half]
        one.output.bias.data.zero_()
        total = total + one(Features(hidden), None)
    torch.testing.assert_close(two(Features(hidden), None), total)


def test_low_rank_is_a_product_of_two():
    guide = head(rank=1, gate="constant", gate_value=1.0)
    guide.difference.down.weight.data = torch.tensor([[1.0, 2.0]])
    guide.difference.up.weight.data = torch.tensor([[1.0], [0.0], [-3.0]])
    inner = 1 * 4 + 2 * 5
    assert delta(guide, torch.tensor([[[4.0, 5.0]]]))[0, 0].tolist() == [inner, 0, -3 * inner]


def test_a_bias_joins_the_difference_before_the_gate():
    guide = head(bias=True, gate="constant", gate_value=0.5)
    guide.difference.up.weight.data.zero_()
    guide.difference.up.bias.data = torch.tensor([1.0, -2.0, 4.0])
    assert delta(guide, torch.zeros(1, 1, 2))[0, 0].tolist() == [0.5, -1.0, 2.0]


# ---- a fresh guide -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"bias": True}, {"gate": "constant"}])
def test_a_fresh_guide_adds_exactly_nothing(options):
    assert not delta(head(**options), torch.randn(2, 5, 2)).any()


def test_init_std_spreads_the_difference_as_asked():
    wide = head(BackboneShape(64, 500, 1), init_std=0.02)
    assert wide.difference.up.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_fresh_gates_stand_near_one_half():
    guide = head(BackboneShape(64, 3, 1), num_heads=8, head_dim=6)
    gates = guide.gate(guide.encode(Features(torch.randn(4, 20, 64)), None))
    assert (gates - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("rank", [None, 1])
def test_the_first_step_moves_the_difference_and_the_gate_learns_from_the_second(rank):
    guide, hidden = head(rank=rank), torch.randn(1, 6, 2)
    optimizer = torch.optim.SGD(guide.parameters(), lr=0.5)

    def step() -> None:
        optimizer.zero_grad()
        delta(guide, hidden).log_softmax(-1)[..., 0].mean().neg().backward()
        optimizer.step()

    step()
    assert guide.difference.up.weight.any()
    assert not any(p.grad.any() for p in guide.causal_gate.parameters())
    step()
    assert all(p.grad.any() for p in guide.causal_gate.parameters())


@pytest.mark.parametrize("rank", [None, 1])
def test_with_init_std_the_gate_learns_at_once(rank):
    guide = head(init_std=0.1, rank=rank)
    delta(guide, torch.randn(1, 6, 2)).log_softmax(-1)[..., 0].mean().neg().backward()
    assert all(p.grad.any() for p in guide.parameters())


# ---- variants ----------------------------------------------------------------------------------------------


def test_a_constant_gate_has_no_parameters_no_cache_and_no_logit():
    guide = head(gate="constant", gate_value=0.3)
    states = guide.encode(Features(torch.randn(1, 2, 2)), None)
    assert [name for name, _ in guide.named_parameters()] == ["difference.up.weight"]
    assert (guide.cache_layers, guide.gate_logit(states), guide.gate(states)) == (0, None, 0.3)


def test_an_attention_gate_fills_one_layer_of_the_cache():
    assert head().cache_layers == 1


def test_gate_logits_are_fp32_whatever_the_guides_dtype():
    guide = head().to(torch.bfloat16)
    states = guide.encode(Features(torch.randn(1, 2, 2)), None)
    assert guide.gate_logit(states).dtype == torch.float32


# ---- sizes -------------------------------------------------------------------------------------------------

D, V, WIDTH = 4096, 32000, 8 * 48


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_at_7b_are_those_of_the_errata():
    with torch.device("meta"):
        guide = RewardHead(RewardHeadConfig(), BackboneShape(D, V, 32))
    assert parameters(guide.difference) == D * V == 131_072_000
    assert parameters(guide.causal_gate) == 3 * D * WIDTH + WIDTH + 1 == 4_718_977
    assert parameters(guide) == 135_790_977


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"gate": "constant"}, D * V),
        ({"gate": "constant", "bias": True}, D * V + V),
        ({"gate": "constant", "rank": 16}, 16 * (D + V)),
        ({"num_heads": 1, "head_dim": 384}, D * V + 3 * D * WIDTH + WIDTH + 1),  # one head, no fewer parameters
    ],
)
def test_sizes_of_the_variants(options, count):
    with torch.device("meta"):
        assert parameters(RewardHead(RewardHeadConfig(**options), BackboneShape(D, V, 32))) == count


# ---- options -----------------------------------------------------------------------------------------------


def test_options_round_trip():
    config = RewardHeadConfig(rank=4, gate="constant", gate_value=0.2)
    assert RewardHeadConfig.from_dict(config.as_dict()) == config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gaet": "constant"}, "Unknown option 'gaet' for RewardHeadConfig. Did you mean 'gate'?"),
        ({"gate": "open"}, "must be one of 'attention', 'constant', not 'open'"),
        ({"gate_value": 0}, r"gate_value must lie in \(0, 1\], not 0"),
        ({"gate_value": 1.5}, "not 1.5"),
        ({"rank": 0}, "rank must be at least 1, or null for a full one, not 0"),
        ({"num_heads": 0}, "num_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"init_std": -1}, "init_std"),
    ],
)
def test_a_wrong_option_is_refused_with_the_remedy(options, said):
    with pytest.raises(DualHeadError, match=said):
        RewardHeadConfig.from_dict(options)


def test_a_wrong_gate_is_refused_in_python_too():
    with pytest.raises(DualHeadError, match="gate must be 'attention' or 'constant', not 'open'"):
        RewardHeadConfig(gate="open")
