"""Figures of n-grams, counted by hand."""

import pytest

from dual_head.evaluate.text_metrics import distinct_n, diversity

SENTENCE = ["a", "b", "a", "b", "c"]  # ab ba ab bc; aba bab abc; abab babc


def test_distinct_n_by_hand():
    assert distinct_n(SENTENCE, 1) == pytest.approx(3 / 5)
    assert distinct_n(SENTENCE, 2) == pytest.approx(3 / 4)
    assert distinct_n(SENTENCE, 3) == 1
    assert distinct_n([7, 7, 7, 7], 2) == pytest.approx(1 / 3)


def test_diversity_by_hand():
    # 3 of 4 bigrams, 3 of 3 trigrams, 2 of 2 four-grams, each over one more than there are.
    assert diversity(SENTENCE) == pytest.approx(3 / 5 * 3 / 4 * 2 / 3)


def test_a_text_that_only_repeats_is_hardly_diverse_and_one_that_never_does_is():
    assert diversity([7] * 100) == pytest.approx(1 / 100 * 1 / 99 * 1 / 98)
    assert diversity(range(100)) == pytest.approx(99 / 100 * 98 / 99 * 97 / 98)


@pytest.mark.parametrize("tokens", [[], ["a"], ["a", "b", "c"]])
def test_a_text_too_short_for_an_n_gram_has_none_that_differ(tokens):
    assert diversity(tokens) == 0
    assert distinct_n(tokens, 4) == 0


def test_an_empty_text_is_no_error():
    assert [distinct_n([], n) for n in (1, 2, 3)] == [0, 0, 0]
