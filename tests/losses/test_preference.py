"""L = -log sigmoid(beta [log pi(y+) - log pi(y-)]), by hand."""

import math

import pytest
import torch

from dual_head.errors import DualHeadError
from dual_head.losses.preference import Preference
from dual_head.ops.token_scores import Scored

ROW = torch.tensor([0, 0, 2, 1, 3, 3])  # chosen rows 0 and 2, rejected rows 1 and 3
SCORED = Scored(
    {
        "reward_logps": torch.tensor([-1.0, -2.0, -7.0, -5.0, -3.0, -1.0]),
        "policy_logps": torch.tensor([-2.0, -2.0, -1.0, -1.0, -1.0, -1.0]),
        "base_logps": torch.tensor([-1.0, -1.0, -9.0, -6.0, -1.0, -1.0]),
    },
    ROW,
    pairs=2,
)


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


@pytest.mark.parametrize(
    ("on", "margins"),
    [("reward", [(-1 - 2) - -5, -7 - (-3 - 1)]), ("policy", [(-2 - 2) - -1, -1 - (-1 - 1)])],
)
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_beta_multiplies_the_difference_of_sums_once(on, margins, beta):
    terms = Preference(through=on, beta=beta)(SCORED)
    assert terms.loss.tolist() == pytest.approx([softplus(-beta * margin) for margin in margins])
    assert terms.metrics["margin"].tolist() == pytest.approx([beta * margin for margin in margins])


@pytest.mark.parametrize(
    ("on", "margins"),
    [
        # What the backbone says of the replies, -2 and -9 chosen, -6 and -2 rejected, leaves the sums.
        ("reward", [(-3 + 2) - (-5 + 6), (-7 + 9) - (-4 + 2)]),
        ("policy", [(-4 + 2) - (-1 + 6), (-1 + 9) - (-2 + 2)]),
    ],
)
def test_with_a_reference_the_backbones_own_sums_are_taken_off(on, margins):
    terms = Preference(through=on, beta=0.5, reference_free=False)(SCORED)
    assert terms.loss.tolist() == pytest.approx([softplus(-0.5 * margin) for margin in margins])
    assert terms.metrics["margin"].tolist() == pytest.approx([0.5 * margin for margin in margins])
    assert terms.metrics["accuracy"].tolist() == terms.metrics["accuracy_over_base"].tolist()
    free = Preference(through=on, beta=0.5, reference_free=True)(SCORED)
    assert free.metrics["accuracy_over_base"].tolist() == terms.metrics["accuracy_over_base"].tolist()
    assert free.loss.tolist() != pytest.approx(terms.loss.tolist())


def test_metrics_by_hand():
    metrics = Preference(beta=0.5)(SCORED).metrics
    assert metrics["reward_chosen"].tolist() == pytest.approx([0.5 * -3, 0.5 * -7])
    assert metrics["reward_rejected"].tolist() == pytest.approx([0.5 * -5, 0.5 * -4])
    assert metrics["accuracy"].tolist() == [1, 0]  # -3 > -5, but -7 < -4
    # The base alone prefers (-2 > -6) and disprefers (-9 < -2); what the reward adds: 2 - 4 < 0 and -3 - -7 > 0.
    assert metrics["accuracy_over_base"].tolist() == [0, 1]


def test_a_tie_is_not_a_win():
    tied = Scored(
        {"reward_logps": torch.tensor([-1.0, -1.0]), "base_logps": torch.tensor([-1.0, -1.0])},
        torch.tensor([0, 1]),
        pairs=1,
    )
    terms = Preference()(tied)
    assert terms.loss.tolist() == pytest.approx([math.log(2)])
    assert terms.metrics["accuracy"].tolist() == terms.metrics["accuracy_over_base"].tolist() == [0]


@pytest.mark.parametrize("on", ["reward", "policy"])
def test_it_needs_its_distribution_and_metric_needs_are_of_the_base(on):
    assert Preference(through=on).needs == {f"{on}_logps"}
    assert Preference(through=on).metric_needs == {"base_logps"}
    assert Preference(through=on, reference_free=False).needs == {f"{on}_logps", "base_logps"}


def test_without_a_look_at_the_base_the_loss_is_the_same():
    unseen = Scored({name: x for name, x in SCORED.values.items() if name != "base_logps"}, ROW, pairs=2)
    terms = Preference()(unseen)
    assert terms.loss.tolist() == Preference()(SCORED).loss.tolist()
    assert "accuracy_over_base" not in terms.metrics


def test_a_hopeless_margin_has_a_finite_loss_and_gradient():
    logps = torch.tensor([-1e5, -1.0], requires_grad=True)
    far = Scored({"reward_logps": logps, "base_logps": logps.detach()}, torch.tensor([0, 1]), pairs=1)
    loss = Preference(beta=1.0)(far).loss
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([1e5 - 1])
    assert logps.grad.tolist() == pytest.approx([-1, 1])


# Margins of the pairs with a reference, through the policy: (-4 + 2) - (-1 + 6) and (-1 + 9) - (-2 + 2).
MARGINS = (-7.0, 8.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_a_share_of_pairs_may_be_the_wrong_way_round(smoothing):
    scored = {
        form: Preference(through="policy", beta=0.5, reference_free=False, form=form, label_smoothing=smoothing)(SCORED)
        for form in ("sigmoid", "robust")
    }
    for i, margin in enumerate(0.5 * m for m in MARGINS):
        right, wrong = softplus(-margin), softplus(margin)
        smooth = (1 - smoothing) * right + smoothing * wrong
        robust = ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
        assert scored["sigmoid"].loss[i].item() == pytest.approx(smooth)
        assert scored["robust"].loss[i].item() == pytest.approx(robust)


def test_a_hinge_is_flat_once_the_margin_is_one():
    terms = Preference(through="policy", beta=0.5, reference_free=False, form="hinge")(SCORED)
    assert terms.loss.tolist() == pytest.approx([1 + 3.5, 0.0])


@pytest.mark.parametrize(
    ("reference_free", "deltas"),
    [
        # Two tokens chosen against one rejected; one against two.
        (True, [-4 / 2 - -1 / 1, -1 / 1 - -2 / 2]),
        (False, [(-4 + 2) / 2 - (-1 + 6) / 1, (-1 + 9) / 1 - (-2 + 2) / 2]),
    ],
)
def test_ipo_draws_the_difference_of_averages_to_a_half_over_beta(reference_free, deltas):
    terms = Preference(through="policy", beta=0.5, reference_free=reference_free, form="ipo")(SCORED)
    assert terms.loss.tolist() == pytest.approx([(delta - 1 / (2 * 0.5)) ** 2 for delta in deltas])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "log"}, "form must be one of sigmoid, robust, hinge, ipo"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": -0.1}, "below 0.5"),
        ({"form": "ipo", "label_smoothing": 0.1}, "'ipo' has no label_smoothing"),
    ],
)
def test_forms_that_do_not_exist_are_refused(options, said):
    with pytest.raises(DualHeadError, match=said):
        Preference(**options)
