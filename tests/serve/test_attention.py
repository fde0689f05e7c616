"""Attention request by request: what one product under a mask gives, without comparing requests with each other."""

import pytest
import torch
import torch.nn.functional as F

from dual_head.serve.attention import AttentionByRequest

QUERIES, KEYS = [0, 3, 4, 6], [0, 3, 8, 12]  # a prompt of 3, a token after 4, two tokens of a prompt after 2
NEVER = torch.finfo(torch.float32).min


def step(heads: int = 4, key_heads: int = 2, width: int = 8) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values and the mask under which each token looks at its request, up to itself."""
    torch.manual_seed(0)
    query = torch.randn(1, heads, QUERIES[-1], width)
    key, value = (torch.randn(1, key_heads, KEYS[-1], width) for _ in range(2))
    mask = torch.full((1, 1, QUERIES[-1], KEYS[-1]), NEVER)
    for r in range(len(QUERIES) - 1):
        tokens = range(QUERIES[r], QUERIES[r + 1])
        for i, token in enumerate(tokens):
            mask[0, 0, token, KEYS[r] : KEYS[r + 1] - len(tokens) + i + 1] = 0
    return query, key, value, mask


@pytest.mark.parametrize("scale", [None, 0.5])
def test_it_is_one_product_under_the_mask(scale):
    query, key, value, mask = step()
    whole = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    with AttentionByRequest(QUERIES, KEYS):
        parts = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    assert torch.allclose(parts, whole, atol=1e-6)


def test_a_request_is_not_compared_with_the_keys_of_another():
    query, key, value, mask = step()
    key[:, :, 3:8] = float("nan")  # of the second request
    with AttentionByRequest(QUERIES, KEYS):
        parts = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    assert parts[:, :, 3].isnan().all()
    assert not parts[:, :, [0, 1, 2, 4, 5]].isnan().any()


@pytest.mark.parametrize("tokens", [5, 6])
def test_what_is_not_of_the_step_is_left_as_it_is(tokens):
    """Five tokens are of something else, and six without a mask are too."""
    query, key, value, _ = step()
    query, key, value = query[:, :, :tokens], key[:, :, :tokens], value[:, :, :tokens]
    whole = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    with AttentionByRequest(QUERIES, KEYS):
        same = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        other = query + key.repeat_interleave(2, 1)
    assert torch.equal(same, whole)
    assert torch.equal(other, query + key.repeat_interleave(2, 1))
