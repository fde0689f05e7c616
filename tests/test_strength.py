"""Alpha as people write it, and what it means: who acts, how strongly, in which row."""

import math

import pytest
import torch
from models import tiny_lm

from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.strength import resolve_alpha

TWO = {"helpful": 1.0, "harmless": 0.5}


@pytest.mark.parametrize(
    ("alpha", "acting", "strengths"),
    [
        (None, ("helpful", "harmless"), [[1, 0.5], [1, 0.5]]),
        (2, ("helpful", "harmless"), [[2, 2], [2, 2]]),
        (-0.5, ("helpful", "harmless"), [[-0.5, -0.5], [-0.5, -0.5]]),
        ([0.0, 1.5], ("helpful", "harmless"), [[0, 0], [1.5, 1.5]]),
        (torch.tensor([0.0, 1.5]), ("helpful", "harmless"), [[0, 0], [1.5, 1.5]]),
        (torch.tensor(2.0), ("helpful", "harmless"), [[2, 2], [2, 2]]),
        ({"harmless": 3}, ("harmless",), [[3], [3]]),
        ({"harmless": [0, 3], "helpful": 1}, ("helpful", "harmless"), [[1, 0], [1, 3]]),
        ({"harmless": [0, 0], "helpful": 1}, ("helpful",), [[1], [1]]),
    ],
)
def test_every_way_to_write_alpha(alpha, acting, strengths):
    names, resolved = resolve_alpha(alpha, defaults=TWO, rows=2)
    assert names == acting
    assert resolved.dtype == torch.float32
    assert resolved.tolist() == strengths


@pytest.mark.parametrize("alpha", [0, 0.0, [0, 0], {}, {"helpful": 0}, torch.zeros(2)])
def test_at_zero_nobody_acts(alpha):
    names, resolved = resolve_alpha(alpha, defaults=TWO, rows=2)
    assert names == ()
    assert resolved.shape == (2, 0)


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ({"helpfull": 1}, "No guide is named 'helpfull'. Did you mean 'helpful'?"),
        ({"zzz": 1}, "No guide is named 'zzz'. Known: harmless, helpful."),
        ([1, 2, 3], "alpha for 'helpful' has 3 values for 2 rows. Give one number, or one per row."),
        ({"harmless": [1]}, "alpha for 'harmless' has 1 values for 2 rows."),
        (math.nan, "alpha for 'helpful' holds NaN or infinity"),
        ([0, math.inf], "alpha for 'helpful' holds NaN or infinity: [0.0, inf]. Give finite numbers."),
    ],
)
def test_a_wrong_alpha_is_refused_with_the_remedy(alpha, said):
    with pytest.raises(DualHeadError) as refusal:
        resolve_alpha(alpha, defaults=TWO, rows=2)
    assert said in str(refusal.value)


@pytest.mark.parametrize("alpha", [0.6, -0.1, {"helpful": [0.5, 1.1]}, {"helpful": 0.7, "harmless": [0.3, 0.4]}])
def test_probabilities_refuse_weights_that_are_no_shares(alpha):
    with pytest.raises(DualHeadError, match=r"at most 1.*Use fusion='logits'"):
        resolve_alpha(alpha, defaults=TWO, rows=2, fusion="probabilities")


@pytest.mark.parametrize("alpha", [0.5, {"helpful": 1}, {"helpful": 0.3, "harmless": [0.7, 0.1]}])
def test_probabilities_take_shares(alpha):
    _, strengths = resolve_alpha(alpha, defaults=TWO, rows=2, fusion="probabilities")
    assert (strengths.sum(1) <= 1).all()


def test_decimal_shares_that_add_up_to_one_are_shares_whatever_their_rounding():
    shares = {"a": 0.2, "b": 0.4, "c": 0.3, "d": 0.1}
    assert sum(shares.values()) > 1  # by one bit of a float
    resolve_alpha(shares, defaults=dict.fromkeys(shares, 0.0), rows=1, fusion="probabilities")


@pytest.mark.parametrize("alpha", [{"helpfull": 2.0}, {"helpful": math.nan}])
def test_a_wrong_default_is_refused_when_guides_are_attached(alpha):
    with pytest.raises(DualHeadError, match=r"'helpfull?'"):
        AlignedModel.from_backbone(tiny_lm("llama"), {"helpful": RewardHeadConfig()}, alpha=alpha)


def test_options_of_loading_are_refused_beside_a_loaded_backbone():
    with pytest.raises((DualHeadError, TypeError), match="dtype"):
        AlignedModel.from_backbone(tiny_lm("llama"), {"helpful": RewardHeadConfig()}, dtype=torch.bfloat16)
