"""Average of both responses' mean divergence, by hand."""

import torch

from dual_head.losses.kl import Kl
from dual_head.ops.token_scores import Scored


def test_it_is_a_mean_over_tokens_then_over_both_responses():
    scored = Scored({"kl": torch.tensor([1.0, 2.0, 6.0, 0.5, 4.0])}, torch.tensor([0, 0, 0, 1, 1]), pairs=1)
    assert Kl()(scored).loss.tolist() == [((1 + 2 + 6) / 3 + (0.5 + 4) / 2) / 2]


def test_it_reads_the_divergence():
    assert Kl().needs == {"kl"}


def test_it_can_be_that_of_a_trained_base_head():
    values = {"second_kl": torch.tensor([1.0, 3.0, 5.0]), "kl": torch.tensor([70.0, 80.0, 90.0])}
    scored = Scored(values, torch.tensor([0, 0, 1]), pairs=1)
    of_base_head = Kl(of="base_head")
    assert of_base_head.needs == {"second_kl"}
    assert of_base_head(scored).loss.tolist() == [((1 + 3) / 2 + 5) / 2]
    assert Kl()(scored).loss.tolist() == [((70 + 80) / 2 + 90) / 2]
