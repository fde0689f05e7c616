"""Win rates, differences and matrices against numbers worked out by hand."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from dual_head.errors import DualHeadError
from dual_head.evaluate.compare.win_rates import paired_difference, sign_test, win_rate


@dataclass(frozen=True)
class Judged:
    question: str
    preference: float | None
    result: str
    inconsistent: bool = False


SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0, "unparsable": None}


def outcomes(**counts: int) -> list[Judged]:
    results = [result for result, count in counts.items() for _ in range(count)]
    return [Judged(f"q{i}", SCORES[result], result) for i, result in enumerate(results)]


def test_a_tie_is_half_a_win_and_an_unparsable_verdict_is_neither():
    found = win_rate(outcomes(win=5, tie=2, loss=1, unparsable=4))
    assert (found.questions, found.wins, found.ties, found.losses, found.unparsable) == (12, 5, 2, 1, 4)
    assert found.rate == (5 + 1) / 8
    assert found.length_controlled is None
    assert found.length_controlled_interval is None


def test_the_interval_is_that_of_the_normal_theory():
    found = win_rate(outcomes(win=180, tie=40, loss=80))
    mean = 200 / 300
    spread = math.sqrt((180 + 40 / 4) / 300 - mean**2)
    half = 1.96 * spread / math.sqrt(300)
    assert found.interval == pytest.approx((mean - half, mean + half), abs=0.006)
    assert found.interval == win_rate(outcomes(win=180, tie=40, loss=80)).interval


@pytest.mark.parametrize("questions", [1, 3, 40])
def test_a_system_that_always_wins_is_as_sure_as_there_are_questions(questions):
    z2 = 1.96**2
    won, lost = (win_rate(outcomes(**{result: questions})).interval for result in ("win", "loss"))
    assert won == pytest.approx((questions / (questions + z2), 1.0), abs=1e-4)
    assert lost == pytest.approx((0.0, z2 / (questions + z2)), abs=1e-4)
    repeated = [Judged(outcome.question, 1.0, "win") for outcome in outcomes(win=questions) for _ in range(5)]
    assert win_rate(repeated).interval == won  # seeds are not questions


def test_unparsable_verdicts_do_not_move_the_interval():
    assert win_rate(outcomes(win=6, loss=4, unparsable=90)).interval == win_rate(outcomes(win=6, loss=4)).interval


def test_a_judge_that_always_prefers_the_first_answer_gives_one_half():
    both_orders = [Judged(f"q{i}", 0.5, "tie", inconsistent=True) for i in range(20)]
    found = win_rate(both_orders)
    assert (found.rate, found.interval, found.p_value, found.inconsistent) == (0.5, (0.5, 0.5), 1.0, 20)


def test_a_question_with_several_outcomes_is_resampled_whole():
    whole = [Judged(f"q{i}", 1.0, "win" if i % 2 else "loss") for i in range(40) for _ in range(5)]
    apart = [Judged(f"q{i}", 1.0, "win" if i % 2 else "loss") for i in range(200)]
    low, high = win_rate(whole).interval
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(40), abs=0.02)
    low, high = win_rate(apart).interval
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(200), abs=0.02)


def test_questions_with_more_outcomes_count_for_more_in_rate_and_interval():
    unequal = [Judged("a", 1.0, "win")] * 3 + [Judged("b", 0.0, "loss")]
    found = win_rate(unequal)
    assert found.rate == 0.75
    assert found.interval == (0.0, 1.0)  # a quarter of the draws has only "a", a quarter only "b"
    assert found.p_value == 1.0  # one question for, one against


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 2 / 32), (8, 2, 2 * (1 + 10 + 45) / 1024), (0, 10, 2 / 1024)],
)
def test_the_sign_test_sums_binomial_tails(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p)
    found = win_rate(outcomes(win=wins, loss=losses, tie=3))
    assert found.p_value == pytest.approx(p)


def test_a_sign_test_of_thousands_does_not_overflow():
    assert sign_test(1500, 1500) == 1.0
    assert 0 < sign_test(1700, 1300) < 1e-10


def test_lengths_give_a_length_controlled_rate_from_how_sure_the_judge_is():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    judged = [Judged(f"q{i}", 0.7, "win") for i in range(80)] + [Judged("odd", None, "unparsable")]
    lengths = [(int(a), int(b)) for a, b in rng.integers(50, 400, (81, 2))]
    found = win_rate(judged, lengths=lengths)
    assert found.rate == 1.0
    assert found.length_controlled == pytest.approx(0.7, abs=0.01)
    low, high = found.length_controlled_interval
    assert low <= found.length_controlled <= high


@pytest.mark.parametrize("shorter", [0, 4])
def test_where_one_system_is_nearly_always_longer_nothing_is_controlled_for(shorter):
    """A judge of lengths alone would keep its 96%: the constant and the length are one column."""
    lengths = [(200, 100)] * (100 - shorter) + [(100, 200)] * shorter
    found = win_rate(outcomes(win=100 - shorter, loss=shorter), lengths=lengths)
    assert found.rate == 1 - shorter / 100
    assert found.length_controlled is None
    assert found.length_controlled_interval is None


def test_answers_as_long_as_each_other_are_on_no_side():
    assert win_rate(outcomes(win=6, loss=4), lengths=[(100, 100)] * 10).length_controlled == pytest.approx(
        0.6, abs=0.01
    )


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DualHeadError, match="None of the 3 comparisons"):
        win_rate(outcomes(unparsable=3))
    with pytest.raises(DualHeadError, match="unknown result 'won'"):
        win_rate([Judged("q", 1.0, "won")])
    with pytest.raises(DualHeadError, match="2 comparisons and lengths of 1"):
        win_rate(outcomes(win=2), lengths=[(1, 2)])


def test_a_difference_is_paired_by_question():
    a = {f"q{i}": float(i) for i in range(50)}
    b = {id: value - 0.25 for id, value in reversed(a.items())}
    found = paired_difference(a, b)
    assert (found.questions, found.mean, found.interval) == (50, 0.25, (0.25, 0.25))
    other = {id: value + (-1) ** i for i, (id, value) in enumerate(a.items())}
    noisy = paired_difference(a, other)
    assert noisy.mean == 0
    assert noisy.interval == pytest.approx((-1.96 / math.sqrt(50), 1.96 / math.sqrt(50)), abs=0.05)


def test_the_order_of_questions_changes_no_interval():
    a, b = {f"q{i}": float(i**2 % 13) for i in range(30)}, dict.fromkeys((f"q{i}" for i in range(30)), 0.0)
    assert paired_difference(a, b) == paired_difference(dict(reversed(a.items())), b)


def test_differences_are_refused_between_different_questions_or_without_numbers():
    with pytest.raises(DualHeadError, match="the second lacks 'q2'"):
        paired_difference({"q1": 1.0, "q2": 1.0}, {"q1": 1.0})
    with pytest.raises(DualHeadError, match="the first lacks 'q2'"):
        paired_difference({"q1": 1.0}, {"q1": 1.0, "q2": 1.0})
    with pytest.raises(DualHeadError, match="question 'q1' is not finite"):
        paired_difference({"q1": 1.0}, {"q1": math.nan})
    with pytest.raises(DualHeadError, match="no scores"):
        paired_difference({}, {})
