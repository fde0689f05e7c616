"""Intervals are as wide as textbooks say, and hold the truth as often as they claim."""

import random

import numpy as np
import pytest

import dual_head.stats as intervals
from dual_head.stats import bootstrap_mean, crossed, crossed_draws, draws, percentiles, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), table I: the score method.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0000),
    ],
)
def test_wilson_agrees_with_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_300_pairs_leave_5_points_either_way():
    low, high = wilson(150, 300)
    assert (high - low) / 2 == pytest.approx(0.056, abs=0.001)


def test_no_trials_tell_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_stays_among_shares():
    for trials in range(1, 60):
        assert wilson(0, trials)[0] >= 0
        assert wilson(trials, trials)[1] <= 1


def test_a_bootstrap_is_centred_on_the_mean_and_as_wide_as_the_normal_theory():
    rng = random.Random(0)
    values = [rng.gauss(3, 2) for _ in range(400)]
    mean = sum(values) / 400
    spread = (sum((v - mean) ** 2 for v in values) / 400) ** 0.5
    low, high = bootstrap_mean(values)
    assert (low, high) == pytest.approx((mean - 1.96 * spread / 20, mean + 1.96 * spread / 20), abs=0.03)


def test_a_bootstrap_holds_the_true_mean_about_95_times_in_100():
    rng = random.Random(0)
    held = 0
    for seed in range(200):
        low, high = bootstrap_mean([rng.gauss(0, 1) for _ in range(40)], resamples=300, seed=seed)
        held += low <= 0 <= high
    assert 178 <= held <= 198  # 190 expected; 4 binomial deviations below, and percentile intervals run short


def test_the_same_seed_gives_the_same_interval_and_equal_values_none():
    assert bootstrap_mean([1.0, 2.0, 5.0], seed=3) == bootstrap_mean([1.0, 2.0, 5.0], seed=3)
    assert bootstrap_mean([2.0] * 5) == (2.0, 2.0)


def test_equal_values_have_no_interval_even_where_their_mean_is_rounded():
    assert bootstrap_mean([0.1] * 3) == (0.1, 0.1)


def test_draws_are_the_same_whatever_fits_into_memory(monkeypatch):
    whole = np.concatenate(list(draws(7, resamples=50, seed=1)))
    monkeypatch.setattr(intervals, "AT_ONCE", 20)
    blocks = list(draws(7, resamples=50, seed=1))
    assert [len(block) for block in blocks] == [2] * 25
    assert np.concatenate(blocks).tolist() == whole.tolist()
    assert (whole.shape, whole.min(), whole.max()) == ((50, 7), 0, 6)


def test_percentiles_leave_out_a_fortieth_at_either_end():
    assert percentiles(range(1, 41)[::-1]) == (2, 39)
    assert percentiles([3.0]) == (3.0, 3.0)
    assert percentiles(range(1, 42), interpolate=True) == (2, 40)


def test_seeds_are_resampled_as_well_as_what_they_answer():
    # Two seeds of two, each drawn twice a quarter of the time: means of 0, 1/2 and 1, whatever the columns.
    assert crossed([[0.0] * 30, [1.0] * 30]) == (0.5, (0.0, 1.0))
    # One seed: columns alone, both the same a quarter of the time each.
    assert crossed([[0.0, 1.0]]) == (0.5, (0.0, 1.0))
    assert crossed(np.full((3, 4), 2.0)) == (2.0, (2.0, 2.0))


def test_an_interval_over_seeds_and_columns_is_what_it_was_before_it_was_drawn_in_blocks(monkeypatch):
    table = np.random.default_rng(0).normal(size=(3, 40))
    rng = np.random.default_rng(5)
    rows, columns = rng.integers(0, 3, (2000, 3)), rng.integers(0, 40, (2000, 40))
    means = [table[own].mean(0)[other].mean() for own, other in zip(rows, columns, strict=True)]
    monkeypatch.setattr(intervals, "AT_ONCE", 1000)
    assert crossed(table, seed=5) == (table.mean(), tuple(np.percentile(means, [2.5, 97.5])))
    drawn = list(crossed_draws(3, 40, seed=5))
    assert (len(drawn), drawn[0][0].shape, drawn[0][1].shape) == (2000, (3,), (40,))
