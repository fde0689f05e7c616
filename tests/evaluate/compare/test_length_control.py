"""Length control gives AlpacaEval's published numbers, and sees through a judge that likes long answers."""

import gzip
import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="length control needs scikit-learn: pip install 'dual-head[eval]'")

from dual_head.errors import DualHeadError
from dual_head.evaluate.compare.length_control import gamed_baselines, length_controlled


@pytest.fixture(scope="module")
def published(shared_data):
    """Preferences, lengths and length-controlled win rates of 25 models, as AlpacaEval 2 published them."""
    file = shared_data / "eval" / "alpaca_eval" / "lc_compact.json.gz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not among the real data")
    with gzip.open(file) as stream:
        return json.load(stream)


@pytest.fixture(scope="module")
def gamed(published):
    given = published["gamed"]
    lengths = [own for name, own in given.items() if name.startswith("len_gpt4")]
    moments = (given["feature_stats"]["S_len"], given["feature_stats"]["S_diff"])
    return gamed_baselines(lengths, given["len_baseline"], published["instruction_difficulty"], moments)


def refitted(model, published, gamed, resamples=0):
    return length_controlled(
        model["preference"],
        model["len_model"],
        model["len_baseline"],
        difficulty=published["instruction_difficulty"],
        gamed=gamed,
        resamples=resamples,
    )


def test_a_refit_gives_all_25_published_rates_within_0_15_points(published, gamed):
    models = published["models"]
    away = {name: 100 * refitted(model, published, gamed).rate - model["lc_win_rate"] for name, model in models.items()}
    worst = max(away, key=lambda name: abs(away[name]))
    print(f"largest deviation of {len(away)}: {away[worst]:+.3f} points, {worst}")
    assert len(away) == 25
    assert abs(away[worst]) < 0.15


def test_refitted_weights_are_the_published_ones(published, gamed):
    model = published["models"]["claude-2.1"]
    weights = refitted(model, published, gamed).weights
    assert list(weights) == ["length", "difficulty", "constant"]
    assert list(weights.values()) == pytest.approx(model["glm_weights"], abs=0.03)


def test_the_interval_of_a_published_rate_is_near_its_standard_error(published, gamed):
    model = published["models"]["claude-2.1"]
    found = refitted(model, published, gamed, resamples=60)
    low, high = found.interval
    assert low < found.rate < high
    # The plain rate's standard error over 805 questions; control for length changes it little.
    error = np.std(model["preference"]) / np.sqrt(805)
    assert (high - low) / 2 == pytest.approx(2 * error, rel=0.4)


def longer_is_better(ratio: float, noise: float):
    """A judge that prefers the longer of two answers, the longer the surer it is of it."""
    rng = np.random.default_rng(0)
    baseline = rng.lognormal(6, 0.6, 300).round()
    model = (baseline * ratio * rng.lognormal(0, 0.3, 300)).round()
    return (model - baseline + noise * rng.normal(size=300) > 0).astype(float), model, baseline


def test_a_judge_that_prefers_longer_answers_is_exposed():
    preferences, model, baseline = longer_is_better(1.5, 0)
    found = length_controlled(preferences, model, baseline)
    assert preferences.mean() > 0.9
    assert found.rate == pytest.approx(0.5, abs=0.08)
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.weights["length"] < 0  # d is the baseline's length less the model's


def test_a_better_system_stays_better_whatever_its_length():
    rng = np.random.default_rng(1)
    baseline, model = rng.integers(100, 900, (2, 300))
    found = length_controlled(np.full(300, 0.8), model, baseline)
    assert found.rate == pytest.approx(0.8, abs=0.002)
    assert found.weights["length"] == pytest.approx(0, abs=0.02)


def test_equal_lengths_leave_the_plain_rate():
    preferences = [1.0] * 200 + [0.5] * 40 + [0.0] * 60
    for longer in (0, 7):  # what never varies cannot be told from the constant either
        found = length_controlled(preferences, [100 + longer] * 300, [100] * 300, resamples=20)
        assert found.rate == pytest.approx(220 / 300, abs=1e-3)
        assert found.weights["length"] == pytest.approx(0, abs=1e-6)


def test_the_weight_of_length_is_that_of_two_answers_by_hand():
    # d = +-100 has deviation 100 sqrt 2 with n - 1, and tanh(1 / sqrt 2) = 0.6089; logit 0.8 = 1.3863.
    found = length_controlled([0.8, 0.2], [300, 100], [200, 200], resamples=0)
    assert found.weights["length"] == pytest.approx(-1.3863 / 0.6089, rel=0.1)  # the penalty takes some
    assert found.rate == pytest.approx(0.5, abs=1e-6)


def test_all_wins_keep_finite_weights():
    rng = np.random.default_rng(2)
    found = length_controlled(np.ones(300), rng.integers(100, 900, 300), rng.integers(100, 900, 300), resamples=20)
    assert 0.99 < found.rate < 1
    assert all(np.isfinite(value) for value in found.weights.values())
    assert length_controlled([1.0], [3], [4], resamples=2).rate > 0.9


def test_copies_of_a_question_are_resampled_together():
    preferences, model, baseline = longer_is_better(1.2, 200)
    alone = length_controlled(preferences[:60], model[:60], baseline[:60], resamples=60)
    names = [f"q{i}" for i in range(60)] * 4
    arrays = [np.tile(own[:60], 4) for own in (preferences, model, baseline)]
    together = length_controlled(*arrays, questions=names, resamples=60)
    apart = length_controlled(*arrays, resamples=60)
    width = [found.interval[1] - found.interval[0] for found in (alone, together, apart)]
    assert together.rate == pytest.approx(alone.rate, abs=0.01)
    assert width[1] == pytest.approx(width[0], rel=0.25)
    assert width[2] < 0.7 * width[0]


def test_the_same_seed_gives_the_same_interval_and_no_resamples_none():
    data = longer_is_better(1.2, 200)
    assert length_controlled(*data, resamples=20, seed=3) == length_controlled(*data, resamples=20, seed=3)
    other = length_controlled(*data, resamples=20, seed=4).interval
    assert length_controlled(*data, resamples=20, seed=3).interval != other
    assert length_controlled(*data, resamples=0).interval is None


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DualHeadError, match="AlpacaEval's files have 1 to 2"):
        length_controlled([1.0, 2.0], [1, 2], [1, 2])
    with pytest.raises(DualHeadError, match="'lengths_model' has shape"):
        length_controlled([1.0, 0.0], [1], [1, 2])
    with pytest.raises(DualHeadError, match="at least one"):
        length_controlled([], [], [])
    with pytest.raises(DualHeadError, match="'preferences' has shape"):
        length_controlled([1.0, float("nan")], [1, 2], [1, 2])
    with pytest.raises(DualHeadError, match="Name one for each"):
        length_controlled([1.0], [1], [1], questions=["a", "b"])
    anchors = gamed_baselines([[1, 5, 9]], [4, 4, 4], [0.1, 0.2, 0.3], (0.1, 0.2))
    with pytest.raises(DualHeadError, match="Give difficulty as well"):
        length_controlled([1.0], [1], [1], gamed=anchors)
    impossible = gamed_baselines([[1, 5, 9]], [4, 4, 4], [0.1, 0.2, 0.3], (100.0, 0.2))
    with pytest.raises(DualHeadError, match="No preferences in"):
        length_controlled([1.0], [1], [1], difficulty=[0.5], gamed=impossible)
