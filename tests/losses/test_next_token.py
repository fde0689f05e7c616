"""L = -log pi(y+), by hand."""

import pytest
import torch

from dual_head.losses.next_token import NextToken
from dual_head.ops.token_scores import Scored

# Chosen responses have 3 and 1 tokens, the rejected 1 and 2.
SCORED = Scored(
    {"policy_logps": torch.tensor([-1.0, -2.0, -6.0, -5.0, -70.0, -80.0, -90.0])},
    torch.tensor([0, 0, 0, 2, 1, 3, 3]),
    pairs=2,
)


@pytest.mark.parametrize(("over", "loss"), [("tokens", [(1 + 2 + 6) / 3, 5]), ("sequence", [1 + 2 + 6, 5])])
def test_chosen_responses_only_by_token_or_by_sequence(over, loss):
    assert NextToken(over=over)(SCORED).loss.tolist() == loss


def test_it_reads_the_policy():
    assert NextToken().needs == {"policy_logps"}
