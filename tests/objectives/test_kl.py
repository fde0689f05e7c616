"""Average of both responses' mean divergence, by hand."""

import torch

from dual_head.objectives.kl import Kl
from dual_head.reductions import Scored


def test_it_is_a_mean_over_tokens_then_over_both_responses():
    scored = Scored({"kl": torch.tensor([1.0, 2.0, 6.0, 0.5, 4.0])}, torch.tensor([0, 0, 0, 1, 1]), pairs=1)
    assert Kl()(scored).loss.tolist() == [((1 + 2 + 6) / 3 + (0.5 + 4) / 2) / 2]


def test_it_reads_the_divergence():
    assert Kl().needs == {"kl"}
