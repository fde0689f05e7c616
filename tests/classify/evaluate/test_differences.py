"""Differences of classifiers on the same rows, by hand: the same draws for both, and seeds drawn beside the rows."""

import numpy as np
import pytest

from dual_head import DualHeadError
from dual_head.classify.evaluate.differences import differences, mcnemar, of_seeds
from dual_head.classify.evaluate.metrics import Rows, as_rows, report
from dual_head.stats import crossed, draws, percentiles

# True a, b, a, a; the first is given a, b, b, a
TRUE = np.array([0, 1, 0, 0])
FIRST = np.array([0, 1, 1, 0])


def given(labels, truth=TRUE, *, sure: float = 2.0, groups=None) -> Rows:
    """Rows of two classes that are given these labels, with logits 0 and `sure`."""
    return as_rows(sure * np.eye(2)[np.asarray(labels)], truth, groups=groups)


def right_on(flags, groups=None) -> Rows:
    """Rows of class 0 of which these are right."""
    return given(1 - np.asarray(flags, dtype=int), np.zeros(len(flags), dtype=int), groups=groups)


def width(found: dict) -> float:
    low, high = found["accuracy"]["interval"]
    return high - low


# ---- two systems -----------------------------------------------------------------------------------------------


def test_every_main_metric_has_its_difference():
    found = differences(given(FIRST), given(TRUE))
    assert set(found) == {"accuracy", "macro_f1", "nll"}
    assert found["accuracy"]["difference"] == pytest.approx(1 / 4)
    # a: 2 of 3 found, nothing else called a: F1 4/5; b: found, and one more called b: 2/3
    assert found["macro_f1"]["difference"] == pytest.approx(1 - (4 / 5 + 2 / 3) / 2)
    # One row of four is e^2 times as likely: log p rises by 2.
    assert found["nll"]["difference"] == pytest.approx(-2 / 4)


def test_an_interval_of_two_rows_is_known_without_drawing():
    # The second is right on one row more: both draws are that row a quarter of the time, and neither is another.
    found = differences(right_on([1, 0]), right_on([1, 1]))
    assert found["accuracy"] == {"difference": 0.5, "interval": [0.0, 1.0]}


def test_a_system_is_no_further_from_itself_on_any_draw():
    rng = np.random.default_rng(0)
    rows = given(rng.integers(0, 2, 50), rng.integers(0, 2, 50))
    assert all(own == {"difference": 0.0, "interval": [0.0, 0.0]} for own in differences(rows, rows).values())


def test_both_systems_are_measured_on_the_same_draws():
    rng = np.random.default_rng(0)
    truth, *said = (rng.integers(0, 2, 40) for _ in range(3))
    found = differences(*(given(one, truth) for one in said), resamples=100, seed=3)["macro_f1"]
    changes = []
    for drawn in np.concatenate(list(draws(40, resamples=100, seed=3))):
        scores = [report(np.eye(2)[one[drawn]], truth[drawn], resamples=1)["macro_f1"]["mean"] for one in said]
        changes.append(scores[1] - scores[0])
    assert found["interval"] == pytest.approx(percentiles(changes))


def test_pairing_is_surer_than_two_separate_intervals():
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.7
    second = first.copy()
    second[np.flatnonzero(~first)[:20]] = True
    found = differences(right_on(first), right_on(second))
    low, high = report(np.eye(2)[(~second).astype(int)], np.zeros(500, dtype=int))["accuracy"]["interval"]
    assert found["accuracy"]["interval"][0] > 0
    assert width(found) < 0.05 < high - low


def test_groups_widen_a_difference():
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.random(50) < 0.5, 10) for _ in range(2))
    groups = np.repeat(np.arange(50), 10).tolist()
    grouped = differences(right_on(first, groups), right_on(second, groups))
    assert width(grouped) > 2 * width(differences(right_on(first), right_on(second)))


def test_groups_are_right_as_a_whole():
    groups = ["p", "p", "q", "q"]
    found = differences(given(FIRST, groups=groups), given(TRUE, groups=groups))
    assert found["em"]["difference"] == 1 / 2
    assert found["f1a"]["difference"] == pytest.approx(1 - 2 / 3)


def test_mcnemar_counts_the_rows_that_one_alone_gets_right():
    found = mcnemar([1, 1, 0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 1, 1, 1, 0])
    assert (found["only_first"], found["only_second"]) == (1, 4)
    # P(at most 1 of 5 heads), twice
    assert found["p_value"] == pytest.approx(2 * (1 + 5) / 32)


# ---- several seeds of each ---------------------------------------------------------------------------------------


def test_seeds_that_disagree_make_an_interval_although_every_row_is_alike():
    found = of_seeds({"it": [right_on([1] * 20), right_on([0] * 20)]})["it"]["accuracy"]
    assert found == {"mean": 0.5, "interval": [0.0, 1.0], "by_seed": [1.0, 0.0], "over": {}}


def test_systems_that_do_the_same_at_every_seed_do_not_differ_however_far_apart_the_seeds_are():
    both = [right_on([1, 1, 1, 0]), right_on([0, 0, 0, 0])]
    found = of_seeds({"pooled": both, "none": both}, over=("pooled", "none"))
    assert found["none"]["accuracy"]["over"] == {"pooled": {"difference": 0.0, "interval": [0.0, 0.0]}}
    assert found["pooled"]["accuracy"]["over"].keys() == {"none"}


def test_accuracy_is_that_of_the_table_of_seeds_and_rows():
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 60)) < 0.6, rng.random((3, 60)) < 0.7
    found = of_seeds({"a": list(map(right_on, first)), "b": list(map(right_on, second))}, over=["a"])
    assert (found["b"]["accuracy"]["mean"], found["b"]["accuracy"]["interval"]) == (
        pytest.approx(second.mean()),
        pytest.approx(crossed(second)[1]),
    )
    difference, interval = crossed(second.astype(float) - first)
    assert found["b"]["accuracy"]["over"]["a"] == {
        "difference": pytest.approx(difference),
        "interval": pytest.approx(interval),
    }


def test_other_figures_are_means_over_seeds_and_not_of_all_rows_at_once():
    found = of_seeds({"it": [given(FIRST), given(TRUE)]})["it"]["macro_f1"]
    assert found["by_seed"] == pytest.approx([(4 / 5 + 2 / 3) / 2, 1])
    assert found["mean"] == pytest.approx(((4 / 5 + 2 / 3) / 2 + 1) / 2)


def test_groups_of_rows_are_drawn_whole_beside_the_seeds():
    alike = np.repeat([1, 0, 1, 0, 1, 0, 1, 0], 10)
    groups = np.repeat(np.arange(8), 10).tolist()
    free, whole = (of_seeds({"it": [right_on(alike, own)] * 2})["it"] for own in (None, groups))
    assert width(whole) > 2 * width(free)
    assert whole["em"]["mean"] == 0.5


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_what_is_not_of_the_same_rows_or_seeds_is_refused():
    with pytest.raises(DualHeadError, match="same rows"):
        mcnemar([1, 0], [1])
    with pytest.raises(DualHeadError, match="2 and 3 rows"):
        differences(right_on([1, 0]), right_on([1, 0, 1]))
    with pytest.raises(DualHeadError, match="same groups"):
        differences(right_on([1, 0]), right_on([1, 0], ["q", "q"]))
    with pytest.raises(DualHeadError, match="same seeds"):
        of_seeds({"a": [right_on([1, 0])], "b": [right_on([1, 0])] * 2})
    with pytest.raises(DualHeadError, match="no rows"):
        of_seeds({})
