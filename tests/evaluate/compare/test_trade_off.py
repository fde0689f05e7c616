"""Gains at equal divergence that can be read off a drawn curve."""

import math

import numpy as np
import pytest

from dual_head.errors import DualHeadError
from dual_head.evaluate.compare.trade_off import best_of_divergence, differences_at, gain_at, gains_at


def test_a_gain_is_read_on_straight_lines_from_no_gain_at_no_divergence():
    curve = [2.0, 6.0], [1.0, 3.0]
    assert gain_at(*curve, [0.0, 1.0, 2.0, 4.0, 6.0]).tolist() == [0.0, 0.5, 1.0, 2.0, 3.0]


def test_points_are_taken_in_the_order_of_their_divergence():
    assert gain_at([6.0, 2.0], [3.0, 1.0], [4.0]).tolist() == [2.0]


def test_past_the_last_point_nothing_is_said():
    assert math.isnan(gain_at([2.0], [1.0], [2.1])[0])
    [there, past] = gains_at(np.full((1, 2, 3), 2.0), np.full((1, 2, 3), 1.0), [1.0, 3.0])
    assert (there.gain, there.interval) == (0.5, (0.5, 0.5))
    assert (past.gain, past.interval) == (None, None)


def test_the_interval_holds_the_gain_and_grows_with_what_prompts_differ_in():
    rng = np.random.default_rng(0)
    kl = np.stack([np.full((3, 200), 2.0), np.full((3, 200), 6.0)])
    noise = rng.normal(size=(2, 3, 200))
    means = np.array([1.0, 3.0])[:, None, None]
    [narrow], [wide] = (gains_at(kl, means + scale * noise, [4.0]) for scale in (0.1, 1.0))
    for figure in (narrow, wide):
        assert figure.interval[0] < figure.gain < figure.interval[1]
        assert figure.gain == pytest.approx(2.0, abs=0.2)
    widths = [high - low for low, high in (narrow.interval, wide.interval)]
    assert widths[1] == pytest.approx(10 * widths[0], rel=0.05)


def test_a_divergence_that_few_draws_reach_has_no_interval():
    kl = np.zeros((1, 1, 50))
    kl[0, 0, 0] = 50.0  # one prompt of 50 carries it all: the mean is 1, many draws are 0
    [figure] = gains_at(kl, np.ones((1, 1, 50)), [0.9])
    assert figure.gain == pytest.approx(0.9)
    assert figure.interval is None


def test_two_curves_are_compared_where_both_are_equally_far_on_the_same_draws():
    rng = np.random.default_rng(0)
    kl, noise = np.full((1, 3, 100), 4.0), rng.normal(size=(1, 3, 100))
    first, second = (kl, 2.0 + noise), (2 * kl, 2.0 + noise)  # the second is twice as far for the same gain
    [there, past] = differences_at(first, second, [4.0, 5.0])
    mean = 2.0 + noise.mean()
    assert there.gain == pytest.approx(mean - mean / 2)
    assert there.interval[0] < there.gain < there.interval[1]
    assert (past.gain, past.interval) == (None, None)  # the first does not reach it
    [same] = differences_at(first, first, [4.0])
    assert (same.gain, same.interval) == (0.0, (0.0, 0.0))
    with pytest.raises(DualHeadError, match="same seeds and prompts"):
        differences_at(first, (kl[:, :2], noise[:, :2]), [4.0])


def test_best_of_one_is_the_model_itself():
    assert best_of_divergence(1) == 0
    assert best_of_divergence(4) == pytest.approx(math.log(4) - 0.75)


def test_tables_of_other_shapes_are_refused():
    with pytest.raises(DualHeadError, match="equal length"):
        gain_at([1.0], [1.0, 2.0], [1.0])
    with pytest.raises(DualHeadError, match="strengths, seeds, prompts"):
        gains_at(np.ones((2, 3)), np.ones((2, 3)), [1.0])
