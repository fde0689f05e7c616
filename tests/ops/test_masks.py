"""Who may look at whom, drawn: rows are queries, columns are keys, 1 is allowed."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache

from dual_head.ops.masks import additive, branch_mask, causal_mask

CPU = torch.device("cpu")


def cache_of(length: int, *, static: int = 0):
    """A cache of two layers, the second one a guide's, that has seen `length` tokens."""
    cache = DynamicCache()
    if static:
        config = LlamaConfig(num_hidden_layers=2, hidden_size=4, num_attention_heads=1)
        cache = StaticCache(config, max_cache_len=static)
    for layer in range(2 if length else 0):
        cache.update(torch.zeros(1, 1, length, 4), torch.zeros(1, 1, length, 4), layer)
    return cache


def mask(padding, length, cache=None):
    padding = None if padding is None else torch.tensor(padding)
    allowed = causal_mask(padding, length, cache, guide_layer=1, device=CPU)
    return None if allowed is None else allowed[:, 0].int().tolist()


def test_without_padding_or_past_plain_causal_attention_is_right():
    assert mask(None, 3) is None
    assert mask(None, 3, cache_of(0)) is None


def test_one_new_token_may_look_at_all_of_the_past():
    assert mask(None, 1, cache_of(4)) is None


def test_several_new_tokens_look_back_at_the_past_and_never_ahead():
    assert mask(None, 2, cache_of(2)) == [[[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_left_padding_is_seen_by_itself_only():
    assert mask([[0, 0, 1, 1], [1, 1, 1, 1]], 4) == [
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
    ]


def test_right_padding_is_seen_by_itself_only():
    assert mask([[1, 1, 0]], 3) == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert mask([[1, 0, 0]], 3) == [[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]


def test_padding_of_the_past_stays_hidden_from_new_tokens():
    assert mask([[0, 1, 1, 1, 1]], 2, cache_of(3)) == [[[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]]
    assert mask([[0, 1, 1, 1]], 1, cache_of(3)) == [[[0, 1, 1, 1]]]
    assert mask([[0, 1, 1, 0]], 1, cache_of(3)) == [[[0, 1, 1, 1]]]  # of a row that has ended


def test_a_static_cache_hides_the_places_not_yet_written():
    assert mask(None, 2, cache_of(0, static=4)) == [[[1, 0, 0, 0], [1, 1, 0, 0]]]
    assert mask(None, 1, cache_of(2, static=4)) == [[[1, 1, 1, 0]]]
    assert mask([[0, 1, 1]], 1, cache_of(2, static=4)) == [[[0, 1, 1, 0]]]


@pytest.mark.parametrize("rows", [[[0, 0, 0]], [[0, 0, 1], [0, 0, 0]]])
def test_no_query_is_left_with_nothing_to_look_at(rows):
    assert all(any(keys) for row in mask(rows, 3) for keys in row)


# ---- branches ----------------------------------------------------------------------------------------------


def test_both_responses_see_the_prompt_and_neither_sees_the_other():
    parts = torch.tensor([[0, 0, 1, 1, 2, -1]])
    assert branch_mask(parts)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],  # padding sees itself, so that nothing is NaN
    ]


def test_pairs_in_one_row_see_nothing_of_each_other():
    parts = torch.tensor([[0, 1, 2, 3, 4, 5]])
    assert branch_mask(parts)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0, 1],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_to_add_is_0_where_one_may_look_and_finite_elsewhere(dtype):
    added = additive(torch.tensor([True, False]), dtype)
    assert added.tolist() == [0, torch.finfo(dtype).min]
    assert added.dtype == dtype
