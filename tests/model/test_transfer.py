"""A guide of one shape on a backbone of another: widths pooled, layers by depth, tokens by a map."""

import pytest
import torch

from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.guides.layers import pool
from dual_head.model.transfer import UNMAPPED, Transfer


def shape(hidden: int = 4, vocab: int = 5, layers: int = 4) -> BackboneShape:
    return BackboneShape(hidden_size=hidden, vocab_size=vocab, num_layers=layers)


# ---- widths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "width", "pooled"),
    [
        ([1.0, 2.0, 3.0, 6.0], 2, [1.5, 4.5]),
        ([1.0, 2.0, 3.0, 6.0], 1, [3.0]),
        ([1.0, 2.0, 6.0], 2, [1.5, 4.0]),  # windows overlap where the widths do not divide
        ([0.0, 1.0, 2.0, 3.0, 10.0], 3, [(0 + 1) / 2, (1 + 2 + 3) / 3, (3 + 10) / 2]),
    ],
)
def test_pooling_down_averages(hidden, width, pooled):
    assert pool(torch.tensor([hidden]), width)[0].tolist() == pytest.approx(pooled)


@pytest.mark.parametrize(
    ("hidden", "width", "pooled"),
    [
        # Two values at -1/4, 1/4, 3/4 and 5/4 of the way from one to the other, kept within the ends.
        ([1.0, 3.0], 4, [1.0, 1.5, 2.5, 3.0]),
        ([1.0, 3.0], 3, [1 + 2 * 0.0, 1 + 2 * 0.5, 3.0]),
        ([5.0], 3, [5.0, 5.0, 5.0]),
    ],
)
def test_pooling_up_interpolates(hidden, width, pooled):
    assert pool(torch.tensor([hidden]), width)[0].tolist() == pytest.approx(pooled)


def test_an_equal_width_is_left_alone():
    hidden = torch.randn(2, 3, 4)
    assert pool(hidden, 4) is hidden


@pytest.mark.parametrize("width", [3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_is_pooled_by_itself_in_its_own_dtype(width, dtype):
    hidden = torch.randn(2, 3, 4).to(dtype)
    pooled = pool(hidden, width)
    assert (pooled.shape, pooled.dtype) == ((2, 3, width), dtype)
    assert torch.equal(pooled[1, 2], pool(hidden[1, 2][None], width)[0])


@pytest.mark.parametrize("width", [2, 3, 6])
def test_an_adapter_starts_as_the_pooling_and_learns(width):
    transfer = Transfer(shape(width), shape(4), adapter=True)
    hidden = torch.randn(2, 3, 4)
    seen = transfer.features(Features(hidden), ()).hidden
    torch.testing.assert_close(seen, pool(hidden, width))
    seen.square().sum().backward()
    assert transfer.adapter.weight.grad.any()


def test_without_an_adapter_there_is_nothing_to_learn():
    assert list(Transfer(shape(2), shape(4)).parameters()) == []


# ---- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guide", "backbone", "found"),
    [(4, 8, [0, 2, 4, 6, 8]), (4, 4, [0, 1, 2, 3, 4]), (6, 2, [0, 1, 1, 1, 1, 2, 2]), (3, 32, [0, 11, 21, 32])],
)
def test_a_layer_is_the_one_at_the_same_relative_depth(guide, backbone, found):
    transfer = Transfer(shape(layers=guide), shape(layers=backbone))
    assert [transfer.layer(i) for i in range(guide + 1)] == found


# ---- features ----------------------------------------------------------------------------------------------


def test_a_guide_sees_its_own_width_under_its_own_layer_numbers():
    transfer = Transfer(shape(2, layers=2), shape(4, layers=4))
    layers = {i: torch.randn(1, 3, 4) for i in (0, 2, 4)}
    given = Features(torch.randn(1, 3, 4), layers, input_ids=torch.tensor([[5, 6, 7]]), padding=torch.ones(1, 3))
    seen = transfer.features(given, (1, 2))
    assert torch.equal(seen.hidden, pool(given.hidden, 2))
    assert sorted(seen.layers) == [1, 2]
    assert torch.equal(seen.layers[1], pool(layers[2], 2))
    assert torch.equal(seen.layers[2], pool(layers[4], 2))
    assert (seen.input_ids, seen.padding, seen.mask) == (given.input_ids, given.padding, None)
    assert given.hidden.shape == (1, 3, 4)  # others read them as they were


def test_an_adapter_brings_the_layers_over_too():
    transfer = Transfer(shape(2, layers=1), shape(4, layers=1), adapter=True)
    torch.nn.init.normal_(transfer.adapter.weight)
    hidden = torch.randn(1, 3, 4, dtype=torch.bfloat16)
    seen = transfer.features(Features(hidden, {1: 2 * hidden}), (1,))
    torch.testing.assert_close(seen.hidden, hidden.float() @ transfer.adapter.weight.T)
    torch.testing.assert_close(seen.layers[1], 2 * seen.hidden)


# ---- tokens ------------------------------------------------------------------------------------------------


def test_a_direction_goes_to_the_tokens_the_map_names_and_is_0_for_the_others():
    vocab_map = torch.tensor([2, UNMAPPED, 0, 0])
    transfer = Transfer(shape(vocab=3), shape(vocab=4), vocab_map=vocab_map)
    logit_delta = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
    assert transfer.logit_delta(logit_delta).tolist() == [[3, 0, 1, 1], [4, 0, -1, -1]]


@pytest.mark.parametrize(("vocab", "moved"), [(3, [1, 2, 3]), (5, [1, 2, 3, 0, 0]), (2, [1, 2])])
def test_without_a_map_ids_mean_the_same_and_missing_ones_are_0(vocab, moved):
    transfer = Transfer(shape(vocab=3), shape(vocab=vocab))
    assert transfer.logit_delta(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [moved]


def test_a_map_is_stored_and_loaded_with_the_adapter():
    vocab_map = torch.tensor([2, UNMAPPED, 0])
    one = Transfer(shape(2, 3), shape(4, 3), adapter=True, vocab_map=vocab_map)
    other = Transfer(shape(2, 3), shape(4, 3), adapter=True, vocab_map=torch.full((3,), UNMAPPED))
    other.load_state_dict(one.state_dict())
    assert sorted(one.state_dict()) == ["adapter.weight", "vocab_map"]
    assert other.logit_delta(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[3, 0, 1]]
