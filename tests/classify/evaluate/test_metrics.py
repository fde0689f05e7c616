"""Figures of class logits, by hand and beside scikit-learn's; intervals that know what is independent."""

import math

import numpy as np
import pytest

from dual_head import DualHeadError
from dual_head.classify.calibration import log_probabilities, probabilities
from dual_head.classify.evaluate.metrics import reliability, report
from dual_head.stats import wilson

# Five rows of three classes; p of the class that is given, and whether it is right:
#   0.7 right, 0.6 right, 0.5 wrong, 0.8 wrong, 0.4 right
P = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
TRUE = np.array([0, 1, 1, 2, 2])


def mean(found: dict, name: str) -> float:
    return found[name]["mean"]


def random_rows(rows: int, classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return rng.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[labels], labels


# ---- one label a row -----------------------------------------------------------------------------------------


def test_every_figure_of_five_rows_is_what_a_hand_computes():
    found = report(np.log(P), TRUE, names=["a", "b", "c"])
    assert found["rows"] == 5
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert mean(found, "accuracy") == pytest.approx(3 / 5)
    # F1: a 2 / (2 + 1), b 2 / (2 + 1 + 1), c 2 / (2 + 1)
    assert mean(found, "macro_f1") == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert mean(found, "nll") == pytest.approx(-sum(map(math.log, (0.7, 0.6, 0.4, 0.1, 0.4))) / 5)
    brier = (0.09 + 0.04 + 0.01) + (0.09 + 0.16 + 0.01) + (0.25 + 0.36 + 0.01) + (0.01 + 0.64 + 0.81)
    assert mean(found, "brier") == pytest.approx((brier + 0.09 + 0.09 + 0.36) / 5)
    # Every confidence is in a bin of its own: 0.3 + 0.4 + 0.5 + 0.8 + 0.6
    assert mean(found, "ece") == pytest.approx((0.3 + 0.4 + 0.5 + 0.8 + 0.6) / 5)
    assert found["classes"]["b"] == {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "rows": 2}
    assert found["accuracy"]["interval"] == list(wilson(3, 5))


def test_calibration_error_cancels_within_a_bin_and_not_between_bins():
    sure = np.array([0.81, 0.82, 0.85, 0.86])  # the first two in (0.8, 0.867], as are the others
    logits = np.log(np.stack([sure, 1 - sure], 1))
    right = report(logits, [0, 0, 0, 1])
    assert mean(right, "ece") == pytest.approx(abs(3 / 4 - sure.mean()))
    spread = np.array([0.6, 0.6, 0.9, 0.9])
    logits = np.log(np.stack([spread, 1 - spread], 1))
    # 0.6: one of two right; 0.9: both
    assert mean(report(logits, [0, 1, 0, 0]), "ece") == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)


def test_adaptive_bins_hold_as_many_rows_each():
    sure = np.linspace(0.801, 0.865, 30)  # one bin of equal width, fifteen of two rows
    logits = np.log(np.stack([sure, 1 - sure], 1))
    labels = np.arange(30) // 2 % 2  # pairs of neighbours all right, all wrong, ...
    found = report(logits, labels)
    pairs = sure.reshape(15, 2).sum(1)
    by_hand = sum(abs((2 if i % 2 == 0 else 0) - pair) for i, pair in enumerate(pairs)) / 30
    assert mean(found, "adaptive_ece") == pytest.approx(by_hand)
    assert mean(found, "ece") == pytest.approx(abs(sure.mean() - 16 / 30))
    assert by_hand > 1.5 * mean(found, "ece")


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_figures_are_those_of_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = random_rows(400, classes)
    found, said, p = report(logits, labels), logits.argmax(1), probabilities(logits)
    assert mean(found, "accuracy") == pytest.approx(metrics.accuracy_score(labels, said))
    assert mean(found, "macro_f1") == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert mean(found, "nll") == pytest.approx(metrics.log_loss(labels, p))
    assert found["confusion"] == metrics.confusion_matrix(labels, said).tolist()
    brier = metrics.brier_score_loss(labels, p, scale_by_half=False, labels=list(range(classes)))
    assert mean(found, "brier") == pytest.approx(brier)


def test_macro_f1_leaves_out_classes_that_no_row_has_or_is_given():
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
    assert mean(report(logits, [0, 1]), "macro_f1") == 1
    assert report(logits, [0, 1])["classes"]["2"] == {"precision": 0, "recall": 0, "f1": 0, "rows": 0}


def test_soft_labels_are_right_at_their_largest_share_and_cost_their_cross_entropy():
    shares = [[0.6, 0.4, 0.0], [0.0, 0.2, 0.8]]
    found = report(np.log(P[:2]), shares)
    assert mean(found, "accuracy") == 1 / 2
    by_hand = -(0.6 * math.log(0.7) + 0.4 * math.log(0.2) + 0.2 * math.log(0.6) + 0.8 * math.log(0.1)) / 2
    assert mean(found, "nll") == pytest.approx(by_hand)


def test_a_temperature_changes_how_sure_and_not_what():
    logits, labels = random_rows(200, 3)
    plain, hot = report(logits, labels), report(logits, labels, temperature=3.0)
    by_row = report(logits / np.arange(1, 201)[:, None] * 3, labels, temperature=3 / np.arange(1, 201))
    assert hot["accuracy"] == plain["accuracy"] == by_row["accuracy"]
    assert mean(hot, "nll") == pytest.approx(mean(report(logits / 3, labels), "nll"))
    assert mean(by_row, "nll") == pytest.approx(mean(plain, "nll"))
    assert mean(hot, "ece") != pytest.approx(mean(plain, "ece"))


def test_probabilities_of_huge_logits_are_finite():
    logits = [[1000.0, 0.0], [-1000.0, 3.0]]
    assert probabilities(logits).tolist() == [[1, 0], [0, 1]]
    assert log_probabilities(logits)[0].tolist() == [0, -1000]
    assert probabilities(logits, multi_label=True)[:, 0].tolist() == [1, 0]


# ---- groups ----------------------------------------------------------------------------------------------------


def test_f1a_is_over_all_answers_and_em_over_whole_questions():
    # Questions q (rows 0-2), r (3-4), s (5); wrong: row 1 (given 1, is 0) and row 4 (given 0, is 1)
    truth, said = np.array([1, 0, 0, 1, 1, 1]), np.array([1, 1, 0, 1, 0, 1])
    found = report(np.eye(2)[said], truth, groups=["q", "q", "q", "r", "r", "s"])
    assert found["groups"] == 3
    assert mean(found, "f1a") == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert mean(found, "em") == pytest.approx(1 / 3)
    assert found["em"]["interval"] == list(wilson(1, 3))


def test_rows_without_a_group_are_on_their_own():
    found = report(np.eye(2)[[0, 1, 1]], [0, 1, 0], groups=["", "", ""])
    assert "em" not in found
    assert found["accuracy"]["interval"] == list(wilson(2, 3))


def test_rows_that_repeat_do_not_make_an_accuracy_surer():
    logits, labels = random_rows(60, 2)
    alone = report(logits, labels)
    ten = report(np.repeat(logits, 10, 0), np.repeat(labels, 10), groups=np.repeat(np.arange(60), 10).tolist())
    blind = report(np.repeat(logits, 10, 0), np.repeat(labels, 10))
    width = lambda found: np.diff(found["accuracy"]["interval"])[0]  # noqa: E731
    assert width(ten) == pytest.approx(width(alone), rel=0.2)
    assert width(blind) < width(alone) / 2


def test_an_interval_of_nll_covers_the_truth_about_as_often_as_it_says():
    logits, labels = random_rows(40000, 2, seed=1)
    truth = mean(report(logits, labels, resamples=1), "nll")
    covered = 0
    for start in range(0, 20000, 200):
        low, high = report(logits[start : start + 200], labels[start : start + 200], resamples=200)["nll"]["interval"]
        covered += low <= truth <= high
    assert 86 <= covered <= 100


def test_a_classifier_as_sure_as_it_is_right_may_have_no_calibration_error():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 2000)
    found = report(np.log(np.stack([sure, 1 - sure], 1)), (rng.random(2000) > sure).astype(int))
    for name in ("ece", "adaptive_ece"):
        low, high = found[name]["interval"]
        assert low < 0.005 < mean(found, name) <= high < 0.04
    off = report(np.log(np.stack([sure, 1 - sure], 1)), (rng.random(2000) > 0.5).astype(int))
    assert off["ece"]["interval"][0] > 0.2


def test_equal_seeds_give_equal_intervals():
    logits, labels = random_rows(50, 3)
    assert report(logits, labels, seed=3) == report(logits, labels, seed=3)
    assert report(logits, labels, seed=3)["nll"] != report(logits, labels, seed=4)["nll"]


# ---- several labels a row ------------------------------------------------------------------------------------


def test_several_labels_are_counted_by_label_and_by_row():
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    said = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    found = report(4.0 * (2 * said - 1), truth, names=["x", "y", "z"])
    assert mean(found, "exact_match") == pytest.approx(1 / 3)
    assert mean(found, "micro_f1") == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert mean(found, "macro_f1") == pytest.approx((2 / 3 + 2 / 3) / 2)  # z is neither there nor given
    sure, wrong = math.log1p(math.exp(-4)), math.log1p(math.exp(4))
    assert mean(found, "nll") == pytest.approx((7 * sure + 2 * wrong) / 9)
    assert found["confusion"][0] == [[1, 1], [0, 1]]
    assert found["classes"]["y"] == {"precision": 1, "recall": 0.5, "f1": 2 / 3, "rows": 2}


def test_a_share_of_one_of_several_labels_is_had_from_half_on_and_costs_its_cross_entropy():
    shares, whole = np.array([[0.9, 0.2], [0.5, 0.4]]), np.array([[1, 0], [1, 0]])
    logits = np.array([[2.0, -2.0], [1.0, 1.0]])
    soft, hard = (report(logits, labels, multi_label=True) for labels in (shares, whole))
    for name in ("exact_match", "micro_f1", "macro_f1"):
        assert mean(soft, name) == mean(hard, name)
    assert mean(soft, "exact_match") == 0.5
    assert soft["confusion"] == hard["confusion"]
    p = 1 / (1 + np.exp(-logits))
    assert mean(soft, "nll") == pytest.approx(-(shares * np.log(p) + (1 - shares) * np.log(1 - p)).mean())
    assert mean(soft, "brier") == pytest.approx(((p - shares) ** 2).mean())


def test_several_labels_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, logits = rng.integers(0, 2, (300, 4)), rng.normal(size=(300, 4))
    found, said = report(logits, truth), logits >= 0
    for average in ("micro", "macro"):
        assert mean(found, f"{average}_f1") == pytest.approx(metrics.f1_score(truth, said, average=average))
    assert mean(found, "exact_match") == pytest.approx(metrics.accuracy_score(truth, said))


def test_one_hot_labels_are_shares_unless_said_otherwise():
    logits, labels = random_rows(20, 3)
    one_hot = np.eye(3)[labels]
    assert report(logits, one_hot)["nll"] == report(logits, labels)["nll"]
    assert "micro_f1" in report(logits, one_hot, multi_label=True)


# ---- pictures and mistakes --------------------------------------------------------------------------------------


def test_a_reliability_diagram_has_the_bins_with_rows():
    found = reliability([0.05, 0.95, 0.96, 1.0], [0, 1, 1, 0], bins=10)
    assert [(point["low"], point["rows"]) for point in found] == [(0.0, 1), (0.9, 3)]
    assert found[1]["accuracy"] == pytest.approx(2 / 3)
    assert found[1]["confidence"] == pytest.approx((0.95 + 0.96 + 1) / 3)
    assert found[1]["interval"] == list(wilson(2, 3))


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((0, 2)), [], "at least one row"),
        (np.zeros((2, 2)), [0], r"\(2, 2\) and \(1,\)"),
        (np.zeros((2, 2)), [0, 2], "classes 0 to 1"),
        (np.zeros((2, 2)), [0, -100], "leave out rows that have none"),
        ([[np.nan, 0.0]], [0], "NaN or infinite"),
    ],
)
def test_rows_that_cannot_be_measured_are_refused(logits, labels, said):
    with pytest.raises(DualHeadError, match=said):
        report(logits, labels)


def test_groups_and_temperatures_that_do_not_fit_are_refused():
    with pytest.raises(DualHeadError, match="one for each row"):
        report(np.zeros((2, 2)), [0, 1], groups=["q"])
    with pytest.raises(DualHeadError, match="above 0"):
        report(np.zeros((2, 2)), [0, 1], temperature=0)
