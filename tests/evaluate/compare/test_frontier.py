"""Pareto fronts and hypervolumes that can be checked on squared paper."""

import itertools
import math

import numpy as np
import pytest

from dual_head.errors import DualHeadError
from dual_head.evaluate.compare.frontier import hypervolume, hypervolume_difference, hypervolume_interval, pareto

STAIRS = [[1, 3], [2, 2], [3, 1]]


def test_only_what_nothing_beats_is_on_the_front():
    assert pareto([*STAIRS, [1, 2], [2, 1], [0, 0]]) == [0, 1, 2]
    assert pareto([[1, 1], [1, 2]]) == [1]
    assert pareto([[1, 1], [1, 1]]) == [0, 1]
    assert pareto([[5], [7], [7]]) == [1, 2]


def test_two_objectives_are_an_area_of_stairs():
    assert hypervolume([[2, 3]], [0, 0]) == 6
    assert hypervolume(STAIRS, [0, 0]) == 3 + 2 + 1
    assert hypervolume(STAIRS, [1, 1]) == 1  # only (2, 2) is beyond it in both
    assert hypervolume([*STAIRS, [1, 2], [2, 2], [9, -1]], [0, 0]) == 6  # dominated, twice, below the reference
    assert hypervolume([[-1, -1]], [0, 0]) == 0


def test_three_objectives_are_a_volume():
    assert hypervolume([[2, 3, 4]], [0, 0, 0]) == 24
    # Two boxes: 1 x 1 x 3 and 2 x 2 x 1, which share 1 x 1 x 1.
    assert hypervolume([[1, 1, 3], [2, 2, 1]], [0, 0, 0]) == 3 + 4 - 1


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_any_number_of_objectives_agrees_with_inclusion_and_exclusion(objectives):
    points = np.random.default_rng(objectives).random((6, objectives))
    expected = 0.0
    for size in range(1, 7):
        for chosen in itertools.combinations(points, size):
            expected -= (-1) ** size * math.prod(np.min(chosen, axis=0))
    assert hypervolume(points, np.zeros(objectives)) == pytest.approx(expected)


def test_the_interval_of_a_volume_follows_its_questions():
    same = np.full((1, 30, 2), 2.0)
    assert hypervolume_interval(same, [0, 0]).interval == (4.0, 4.0)
    values = np.random.default_rng(0).normal([2.0, 3.0], [0.5, 0.0], (1, 200, 2))
    found = hypervolume_interval(values, [0, 0])
    mean = values[0, :, 0].mean()
    half = 1.96 * values[0, :, 0].std() / math.sqrt(200)
    assert (found.questions, found.volume) == (200, pytest.approx(3 * mean))
    assert found.interval == pytest.approx((3 * (mean - half), 3 * (mean + half)), abs=0.03)
    assert found == hypervolume_interval(values, [0, 0])


def test_two_frontiers_are_compared_on_the_same_draws():
    values = np.random.default_rng(1).random((3, 50, 2))
    nothing = hypervolume_difference(values, values, [0, 0])
    assert (nothing.volume, nothing.interval) == (0.0, (0.0, 0.0))
    one = values[:1]
    # A rectangle that is higher by 1 everywhere: the difference is its width, whatever is drawn.
    higher = hypervolume_difference(one + np.array([0.0, 1.0]), one, [0, 0])
    assert higher.volume == pytest.approx(one[0, :, 0].mean())
    assert 0 < higher.interval[0] < higher.volume < higher.interval[1]


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(DualHeadError, match="reference has 3 numbers and the points 2"):
        hypervolume(STAIRS, [0, 0, 0])
    for bad in ([], [[1, math.nan]], [[1, 2], [3]], [1, 2]):
        with pytest.raises(DualHeadError, match="finite numbers"):
            pareto(bad)
    with pytest.raises(DualHeadError, match="Compare them on the same"):
        hypervolume_difference(np.ones((1, 3, 2)), np.ones((1, 4, 2)), [0, 0])
