"""x -> W x + b, whole or as a product of two; zero at the start, and awake after one step."""

import pytest
import torch
from torch import nn

from dual_head import DualHeadError
from dual_head.backbone.features import Features
from dual_head.guides import layers
from dual_head.guides.layers import CausalGate, LinearMap, require_not_negative, require_positive, weighted_sum
from dual_head.ops.masks import causal_mask

X = torch.tensor([[2.0, 3.0], [-1.0, 0.5]])


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def a_map(*sizes: int, seed: int = 0, **options) -> LinearMap:
    torch.manual_seed(seed)
    return LinearMap(*sizes, **options)


# ---- the equation ------------------------------------------------------------------------------------------


def test_a_full_map_is_w_x():
    full = a_map(2, 3)
    full.up.weight.data = torch.tensor([[1.0, 0.0], [0.0, -2.0], [4.0, 1.0]])
    assert full(X).tolist() == [[2, -6, 4 * 2 + 3], [-1, -1, 4 * -1 + 0.5]]


def test_a_low_rank_map_goes_down_and_up_again():
    low = a_map(2, 3, rank=1)
    low.down.weight.data = torch.tensor([[1.0, 2.0]])
    low.up.weight.data = torch.tensor([[1.0], [0.0], [-3.0]])
    inner = [2 + 2 * 3, -1 + 2 * 0.5]
    assert low(X).tolist() == [[i, 0, -3 * i] for i in inner]


@pytest.mark.parametrize("rank", [None, 1])
def test_a_bias_is_added_last(rank):
    biased = a_map(2, 3, rank=rank, bias=True)
    biased.up.bias.data = torch.tensor([1.0, -2.0, 4.0])
    assert biased(X).tolist() == [[1, -2, 4]] * 2
    assert a_map(2, 3, rank=rank).up.bias is None


@pytest.mark.parametrize("rank", [None, 2])
def test_its_matrix_is_what_it_does(rank):
    some = a_map(4, 5, rank=rank, init_std=0.3)
    assert some.matrix().shape == (5, 4)
    torch.testing.assert_close(some(torch.eye(4)), some.matrix().T)


# ---- several maps of one input, added up -------------------------------------------------------------------


def low_maps(**options) -> list[LinearMap]:
    return [a_map(4, 5, rank=rank, seed=rank, init_std=0.3, **options) for rank in (2, 3)]


def one_by_one(maps: list[LinearMap], x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return sum(weights[..., i, None] * own(x) for i, own in enumerate(maps))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3,), (2, 1)], ids=["tokens", "rows of a token"])
def test_a_weighted_sum_of_low_rank_maps_is_theirs_one_by_one(shape):
    maps, x, weights = low_maps(), torch.randn(*shape, 4), torch.randn(*shape, 2)
    torch.testing.assert_close(weighted_sum(maps, x, weights), one_by_one(maps, x, weights))
    weights[0] = 0
    assert (weighted_sum(maps, x, weights)[0] == 0).all()


@torch.no_grad()
def test_a_weighted_sum_follows_maps_that_are_written_exchanged_or_left_out():
    maps, x, weights = low_maps(), torch.randn(3, 4), torch.ones(1, 2)
    weighted_sum(maps, x, weights)
    maps[0].up.weight.mul_(2)
    torch.testing.assert_close(weighted_sum(maps, x, weights), one_by_one(maps, x, weights))
    maps[1].down.weight.data = torch.randn(3, 4)
    torch.testing.assert_close(weighted_sum(maps, x, weights), one_by_one(maps, x, weights))
    maps[0].double(), maps[1].double()
    assert weighted_sum(maps, x, weights).dtype == torch.float64
    three = [*maps, a_map(4, 5, rank=1, seed=7, init_std=0.3).double()]
    torch.testing.assert_close(
        weighted_sum(three, x.double(), torch.ones(1, 3)), one_by_one(three, x.double(), torch.ones(1, 3))
    )
    assert weighted_sum(maps, x, weights).shape == (3, 5)  # the first two alone again


@torch.no_grad()
def test_maps_are_copied_once_for_as_long_as_nothing_changes(monkeypatch):
    made, real = [], layers.Stacked
    monkeypatch.setattr(layers, "Stacked", lambda maps: made.append(1) or real(maps))
    maps, x, weights = low_maps(), torch.randn(3, 4), torch.ones(1, 2)
    for _ in range(3):
        weighted_sum(maps, x, weights)
    assert made == [1]


@pytest.mark.parametrize("options", [{"bias": True}, {"rank": None}])
def test_maps_that_have_no_two_products_in_common_are_not_added_up(options):
    maps = [*low_maps(), a_map(4, 5, **{"rank": 2, **options})]
    with torch.no_grad():
        assert weighted_sum(maps, torch.randn(3, 4), torch.ones(1, 3)) is None
        assert weighted_sum(maps[:1], torch.randn(3, 4), torch.ones(1, 1)) is None
    assert weighted_sum(maps[:2], torch.randn(3, 4), torch.ones(1, 2)) is None  # somebody wants a gradient


def test_maps_made_in_inference_are_not_added_up():
    with torch.inference_mode():
        assert weighted_sum(low_maps(), torch.randn(3, 4), torch.ones(1, 2)) is None


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 4 * 5), ({"bias": True}, 4 * 5 + 5), ({"rank": 2}, 2 * (4 + 5)), ({"rank": 2, "bias": True}, 2 * 9 + 5)],
)
def test_it_has_as_many_parameters_as_it_should(options, count):
    assert parameters(a_map(4, 5, **options)) == count


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_only_the_last_dimension_is_mapped(shape):
    some, x = a_map(4, 5, rank=2, init_std=0.3), torch.randn(shape)
    assert some(x).shape == (*shape[:-1], 5)
    torch.testing.assert_close(some(x), x @ some.matrix().T)


@pytest.mark.parametrize(("given", "own"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_dtype_is_that_of_the_weights_whatever_comes_in(given, own, rank):
    some = a_map(4, 5, rank=rank, bias=True, init_std=0.3).to(own)
    x = torch.randn(3, 4).to(given)
    assert some(x).dtype == own
    assert torch.equal(some(x), some(x.to(own)))


# ---- the start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"bias": True}, {"rank": 2, "bias": True}])
def test_a_fresh_map_gives_exactly_nothing(options):
    fresh = a_map(4, 5, **options)
    assert not fresh(torch.randn(7, 4)).any()
    assert not fresh.matrix().any()


def test_a_fresh_low_rank_map_projects_so_that_the_first_gradient_moves_it():
    fresh = a_map(4, 5, rank=2)
    fresh(torch.randn(7, 4)).square().sum().sub(fresh(torch.randn(7, 4)).sum()).backward()
    assert fresh.down.weight.any()
    assert fresh.up.weight.grad.any()
    assert not fresh.down.weight.grad.any()  # nothing comes down through a B of zero


@pytest.mark.parametrize("rank", [None, 300])
def test_init_std_spreads_w_or_b_as_asked_and_leaves_the_bias_at_zero(rank):
    wide = a_map(300, 200, rank=rank, bias=True, init_std=0.02)
    assert wide.up.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not wide.up.bias.any()


# ---- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"rank": 0}, r"rank must be at least 1, or null for a full one, not 0\."),
        ({"num_heads": 8, "head_dim": -1}, r"head_dim must be at least 1, not -1\."),
    ],
)
def test_sizes_below_1_are_refused_by_name(sizes, said):
    with pytest.raises(DualHeadError, match=said):
        require_positive(**sizes)


def test_values_below_0_are_refused_by_name():
    with pytest.raises(DualHeadError, match=r"init_std must not be negative, but is -0\.1\."):
        require_not_negative(weight=1.0, init_std=-0.1)


def test_what_is_off_or_just_large_enough_passes():
    require_positive(rank=None, width=1)
    require_not_negative(init_std=0.0)


# ---- the gate ----------------------------------------------------------------------------------------------


PADDING = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])


def a_gate() -> tuple[CausalGate, torch.Tensor, torch.Tensor]:
    """A gate, hidden states [2, 6, 8], and the mask of a second row that is two tokens shorter."""
    torch.manual_seed(0)
    return (
        CausalGate(8, 2, 4),
        torch.randn(2, 6, 8),
        causal_mask(PADDING, 6, None, guide_layer=0, device=PADDING.device),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "keep", [slice(-3, None), slice(-1, None), torch.tensor([4, 1]), torch.tensor([5, 4, 3, 2, 1, 0])]
)
def test_a_gate_that_is_asked_at_some_positions_says_there_what_it_says_everywhere(masked, keep):
    gate, hidden, mask = a_gate()
    mask = mask if masked else None
    everywhere, there = gate(Features(hidden, mask=mask), None), gate(Features(hidden, mask=mask, keep=keep), None)
    torch.testing.assert_close(there[:, keep], everywhere[:, keep])
    elsewhere = torch.ones(6, dtype=torch.bool)
    elsewhere[keep] = False
    assert not there[:, elsewhere].any()


@pytest.mark.parametrize("masked", [False, True])
def test_what_a_gate_computes_again_row_by_row_has_the_same_gradients(masked, monkeypatch):
    results = []
    for kept in (layers.KEPT, 0):
        monkeypatch.setattr(layers, "KEPT", kept)
        gate, hidden, mask = a_gate()
        features = Features(hidden, mask=mask if masked else None, padding=PADDING, keep=slice(-3, None))
        gate(features, None).square().sum().backward()
        results.append([p.grad for p in gate.parameters()])
    for kept, again in zip(*results, strict=True):
        assert kept.any()
        torch.testing.assert_close(kept, again)


def test_padding_alone_says_what_its_mask_says():
    gate, hidden, mask = a_gate()
    assert torch.equal(gate(Features(hidden, padding=PADDING), None), gate(Features(hidden, mask=mask), None))


def test_only_what_would_keep_much_is_computed_again_and_in_groups_of_rows(monkeypatch):
    groups = []
    monkeypatch.setattr(
        layers, "checkpoint", lambda function, *own, **_: groups.append(len(own[0]().hidden)) or function(*own)
    )
    gate, hidden, _ = a_gate()
    row = (2 * 8 * (3 + 6) + 3 * 6) * 4  # keys and values of 6 tokens, queries of 3 and their answers, the mask; fp32
    for kept in (2 * row, 2 * row - 1):
        monkeypatch.setattr(layers, "KEPT", kept)
        gate(Features(hidden, keep=slice(-3, None)), None)
    assert groups == [1, 1]
    with torch.no_grad():
        gate(Features(hidden, keep=slice(-3, None)), None)
    assert groups == [1, 1]
