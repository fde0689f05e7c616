"""delta = W_a h + b, by hand; what a fresh guide is, and how large it is."""

import pytest
import torch
from models import BOS, guided_lm

from dual_head import DualHeadError
from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides.linear import Linear, LinearConfig

SMALL = BackboneShape(hidden_size=2, vocab_size=3, num_layers=1)
H = torch.tensor([[[4.0, 5.0]]])


def linear(shape: BackboneShape = SMALL, seed: int = 0, **options) -> Linear:
    torch.manual_seed(seed)
    return Linear(LinearConfig(**options), shape)


def delta(guide: Linear, hidden: torch.Tensor) -> torch.Tensor:
    return guide.logit_delta(guide.encode(Features(hidden), None), None)


# ---- the equation ------------------------------------------------------------------------------------------


def test_delta_is_the_alignment_head_times_the_hidden_state():
    guide = linear(bias=True)
    guide.head.up.weight.data = torch.tensor([[1.0, 0.0], [0.0, -2.0], [3.0, 1.0]])
    guide.head.up.bias.data = torch.tensor([0.5, 0.0, -1.0])
    assert delta(guide, H)[0, 0].tolist() == [4 + 0.5, -2 * 5, 3 * 4 + 5 - 1]


def test_low_rank_is_a_product_of_two():
    guide = linear(rank=1)
    guide.head.down.weight.data = torch.tensor([[1.0, 2.0]])
    guide.head.up.weight.data = torch.tensor([[1.0], [0.0], [-3.0]])
    inner = 1 * 4 + 2 * 5
    assert delta(guide, H)[0, 0].tolist() == [inner, 0, -3 * inner]


@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_at_a_fixed_alpha_it_is_one_lm_head(alpha):
    model, ids = guided_lm({"iav": LinearConfig(bias=True)}), torch.tensor([[BOS, 5, 6]])
    weight, bias = model.guide("iav").linear_map()
    with torch.no_grad():
        hidden = model.encode(ids).hidden
        merged = hidden @ (model.backbone.lm.lm_head.weight + alpha * weight).T + alpha * bias
        torch.testing.assert_close(model(ids, alpha=alpha).logits, merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_its_linear_map_is_what_it_does(rank):
    guide, hidden = linear(rank=rank, init_std=0.3), torch.randn(1, 4, 2)
    weight, bias = guide.linear_map()
    torch.testing.assert_close(delta(guide, hidden), hidden @ weight.T)
    assert bias is None


def test_nothing_depends_on_the_sequence():
    guide, hidden = linear(init_std=0.3), torch.randn(1, 4, 2)
    states = guide.encode(Features(hidden), None)
    assert torch.equal(delta(guide, hidden)[:, 3:], delta(guide, hidden[:, 3:]))
    assert (guide.cache_layers, guide.hidden_layers, guide.reads_base, guide.extra_forwards) == (0, (), False, 0)
    assert (guide.gate_logit(states), guide.gate(states)) == (None, 1.0)


# ---- a fresh guide -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"bias": True}])
def test_a_fresh_guide_adds_exactly_nothing(options):
    assert not delta(linear(**options), torch.randn(2, 5, 2)).any()


def test_init_std_spreads_the_head_as_asked():
    wide = linear(BackboneShape(64, 500, 1), init_std=0.02)
    assert wide.head.up.weight.std().item() == pytest.approx(0.02, rel=0.03)


# ---- sizes -------------------------------------------------------------------------------------------------

D, V = 4096, 32000


@pytest.mark.parametrize(
    ("options", "count"), [({}, 131_072_000), ({"bias": True}, 131_104_000), ({"rank": 16}, 16 * (D + V))]
)
def test_sizes_at_7b(options, count):
    with torch.device("meta"):
        guide = linear(BackboneShape(D, V, 32), **options)
    assert sum(p.numel() for p in guide.parameters()) == count


# ---- options -----------------------------------------------------------------------------------------------


def test_options_round_trip():
    config = LinearConfig(rank=4, bias=True, init_std=0.1)
    assert LinearConfig.from_dict(config.as_dict()) == config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rnak": 4}, "Unknown option 'rnak' for LinearConfig. Did you mean 'rank'?"),
        ({"rank": 0}, "rank must be at least 1, or null for a full one, not 0"),
        ({"init_std": -1}, "init_std must not be negative, but is -1"),
        ({"bias": "yes"}, "LinearConfig.bias must be bool, not 'yes'"),
    ],
)
def test_a_wrong_option_is_refused_with_the_remedy(options, said):
    with pytest.raises(DualHeadError, match=said):
        LinearConfig.from_dict(options)
