"""Average of both responses' mean squared norm, by hand."""

import pytest
import torch

from dual_head.errors import DualHeadError
from dual_head.losses.norm import Norm
from dual_head.ops.token_scores import Scored

# Pair 0: three tokens chosen, one rejected; pair 1: one and two.
SCORED = Scored(
    {"delta_norm": torch.tensor([1.0, 2.0, 6.0, 5.0, 0.5, 4.0, 8.0])}, torch.tensor([0, 0, 0, 2, 1, 3, 3]), pairs=2
)


def test_it_is_a_mean_over_tokens_then_over_both_responses():
    terms = Norm()(SCORED)
    assert terms.loss.tolist() == [((1 + 2 + 6) / 3 + 0.5) / 2, (5 + (4 + 8) / 2) / 2]
    assert terms.metrics == {}


def test_the_values_are_squared_already():
    """Twice the delta has four times the norm in the scalar, and so four times the loss."""
    doubled = Scored({"delta_norm": SCORED["delta_norm"] * 4}, SCORED.row, SCORED.pairs)
    torch.testing.assert_close(Norm()(doubled).loss, 4 * Norm()(SCORED).loss)


def test_an_empty_response_counts_as_nothing():
    scored = Scored({"delta_norm": torch.tensor([3.0])}, torch.tensor([1]), pairs=1)
    assert Norm()(scored).loss.tolist() == [1.5]


def test_it_reads_the_norm_and_nothing_else():
    assert Norm().needs == {"delta_norm"}
    with pytest.raises(DualHeadError, match="weight must not be negative, but is -1"):
        Norm(weight=-1.0)
