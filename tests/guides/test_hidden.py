"""z = lm_head(h + alpha g U V h), by hand; what a fresh guide is, and how small it is."""

import math

import pytest
import torch
from models import ARCHITECTURES, BOS, VOCAB, guided_lm

from dual_head import DualHeadError
from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides.hidden import Hidden, HiddenConfig
from dual_head.model.policy import ActiveGuide

SMALL = BackboneShape(hidden_size=2, vocab_size=3, num_layers=1)
H = torch.tensor([[[4.0, 5.0]]])


def hidden_guide(shape: BackboneShape = SMALL, seed: int = 0, **options) -> Hidden:
    torch.manual_seed(seed)
    return Hidden(HiddenConfig(**{"rank": None, "num_heads": 1, "head_dim": 2, **options}), shape)


def delta(guide: Hidden, hidden: torch.Tensor) -> torch.Tensor:
    return guide.hidden_delta(guide.encode(Features(hidden), None))


# ---- the equation ------------------------------------------------------------------------------------------


def test_the_edit_goes_down_to_the_rank_and_up_again():
    guide = hidden_guide(rank=1, bias=True)
    guide.change.down.weight.data = torch.tensor([[1.0, -2.0]])
    guide.change.up.weight.data = torch.tensor([[3.0], [0.5]])
    guide.change.up.bias.data = torch.tensor([0.25, -1.0])
    inner = 4 - 2 * 5
    assert delta(guide, H)[0, 0].tolist() == [3 * inner + 0.25, 0.5 * inner - 1]


def test_without_a_rank_it_is_a_whole_matrix():
    guide = hidden_guide()
    guide.change.up.weight.data = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert delta(guide, H)[0, 0].tolist() == [5, 8]


def test_a_bias_alone_is_a_steering_vector():
    guide = hidden_guide(bias=True)
    guide.change.up.bias.data = torch.tensor([1.0, -2.0])
    assert delta(guide, torch.randn(2, 3, 2)).tolist() == [[[1, -2]] * 3] * 2


def test_the_gate_is_a_sigmoid_of_attention_over_the_past():
    guide = hidden_guide(gate="attention")
    gate = guide.causal_gate
    gate.query.weight.data, gate.key.weight.data, gate.value.weight.data = (torch.eye(2) for _ in range(3))
    gate.output.weight.data, gate.output.bias.data = torch.tensor([[1.0, -1.0]]), torch.tensor([0.5])
    h1, h2 = [1.0, 0.0], [2.0, 1.0]
    to_h1, to_h2 = math.exp(2 / math.sqrt(2)), math.exp(5 / math.sqrt(2))
    mixed = [(to_h1 * a + to_h2 * b) / (to_h1 + to_h2) for a, b in zip(h1, h2, strict=True)]
    s = [1 - 0 + 0.5, mixed[0] - mixed[1] + 0.5]
    states = guide.encode(Features(torch.tensor([[h1, h2]])), None)
    by_hand = torch.tensor([[[1 / (1 + math.exp(-x))] for x in s]])
    torch.testing.assert_close(ActiveGuide(guide, states, 1.0).weight, by_hand)
    assert guide.cache_layers == 1


def test_without_a_gate_it_is_always_open_and_needs_no_cache():
    guide = hidden_guide()
    states = guide.encode(Features(H), None)
    assert (guide.cache_layers, guide.gate_logit(states), guide.gate(states)) == (0, None, 1.0)
    assert [name for name, _ in guide.named_parameters()] == ["change.up.weight"]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@torch.no_grad()
def test_it_acts_before_the_lm_head_and_all_that_an_architecture_does_there(architecture):
    model = guided_lm({"g": HiddenConfig(rank=4)}, architecture)
    ids = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
    hidden, guide = model.encode(ids).hidden, model.guide("g").change
    edited = hidden + 0.7 * hidden @ guide.down.weight.T @ guide.up.weight.T
    torch.testing.assert_close(model(ids, alpha=0.7).logits, model.backbone.logits(edited), atol=1e-4, rtol=1e-4)


def test_at_a_fixed_alpha_it_is_one_lm_head():
    model, ids = guided_lm({"g": HiddenConfig(rank=4, bias=True)}), torch.tensor([[BOS, 5, 6]])
    weight, bias = model.guide("g").linear_map()
    with torch.no_grad():
        hidden, lm_head = model.encode(ids).hidden, model.backbone.lm.lm_head.weight
        merged = hidden @ (lm_head @ (torch.eye(32) + 0.5 * weight)).T + 0.5 * bias @ lm_head.T
        torch.testing.assert_close(model(ids, alpha=0.5).logits, merged, atol=1e-4, rtol=1e-4)


def test_with_a_gate_it_is_no_linear_map():
    with pytest.raises(DualHeadError, match=r"gate depends on the text\. Train with gate=none to merge"):
        hidden_guide(gate="attention").linear_map()


def test_it_speaks_in_hidden_space_only():
    guide = hidden_guide()
    assert guide.space == "hidden"
    with pytest.raises(NotImplementedError, match="Hidden has no logit delta"):
        guide.logit_delta(guide.encode(Features(H), None), None)


# ---- a fresh guide -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"bias": True}, {"gate": "attention"}])
def test_a_fresh_guide_edits_exactly_nothing(options):
    assert not delta(hidden_guide(**options), torch.randn(2, 5, 2)).any()


@pytest.mark.parametrize("options", [{}, {"gate": "attention"}])
def test_a_fresh_guide_keeps_every_logit_and_learns_at_once(options):
    model = guided_lm({"g": HiddenConfig(rank=4, **options)})
    torch.nn.init.zeros_(model.guide("g").change.up.weight)
    ids = torch.randint(3, VOCAB, (2, 6))
    assert torch.equal(model(ids, alpha=1.0).logits, model(ids, alpha=0.0).logits)
    model(ids, alpha=1.0).logits[..., 5].sum().backward()
    assert model.guide("g").change.up.weight.grad.any()


def test_init_std_spreads_u_as_asked():
    wide = hidden_guide(BackboneShape(300, 5, 1), rank=200, init_std=0.02)
    assert wide.change.up.weight.std().item() == pytest.approx(0.02, rel=0.03)


# ---- sizes -------------------------------------------------------------------------------------------------

D, WIDTH = 4096, 8 * 48


@pytest.mark.parametrize("vocabulary", [32_000, 256_000])
def test_at_7b_it_has_half_a_million_parameters_however_large_the_vocabulary(vocabulary):
    with torch.device("meta"):
        guide = Hidden(HiddenConfig(), BackboneShape(D, vocabulary, 32))
    assert sum(p.numel() for p in guide.parameters()) == 2 * D * 64 == 524_288


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"rank": 1}, 2 * D),
        ({"rank": None}, D * D),
        ({"bias": True}, 2 * D * 64 + D),
        ({"gate": "attention"}, 2 * D * 64 + 3 * D * WIDTH + WIDTH + 1),
    ],
)
def test_sizes_of_the_variants(options, count):
    with torch.device("meta"):
        guide = Hidden(HiddenConfig(**options), BackboneShape(D, 32_000, 32))
    assert sum(p.numel() for p in guide.parameters()) == count


# ---- options -----------------------------------------------------------------------------------------------


def test_options_round_trip():
    config = HiddenConfig(rank=None, gate="attention", num_heads=2, bias=True)
    assert HiddenConfig.from_dict(config.as_dict()) == config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gaet": "none"}, "Unknown option 'gaet' for HiddenConfig. Did you mean 'gate'?"),
        ({"gate": "constant"}, "must be one of 'none', 'attention', not 'constant'"),
        ({"rank": 0}, "rank must be at least 1, or null for a full one, not 0"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
        ({"init_std": -1}, "init_std must not be negative"),
    ],
)
def test_a_wrong_option_is_refused_with_the_remedy(options, said):
    with pytest.raises(DualHeadError, match=said):
        HiddenConfig.from_dict(options)


def test_a_wrong_gate_is_refused_in_python_too():
    with pytest.raises(DualHeadError, match="gate must be 'none' or 'attention', not 'constant'"):
        HiddenConfig(gate="constant")
