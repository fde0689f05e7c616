"""The best and the worst of scored replies become one row of preferences."""

import pytest

from dual_head.replies import best_with_worst


def test_the_highest_score_is_chosen_over_the_lowest():
    row = best_with_worst("Hello?", ["a", "b", "c", "d"], [1.0, 3.0, -2.0, 0.0])
    assert row == {
        "prompt": [{"role": "user", "content": "Hello?"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }


def test_of_ties_the_first_reply_stands():
    row = best_with_worst("Hello?", ["a", "b", "c", "d"], [1.0, 1.0, 0.0, 0.0])
    assert row
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("a", "c")


def test_a_conversation_keeps_its_turns():
    turns = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"})
    row = best_with_worst(turns, ["a", "b"], [0.0, 1.0])
    assert row
    assert row["prompt"] == list(turns)


def test_equal_scores_make_no_pair():
    assert best_with_worst("Hello?", ["a", "b"], [1.0, 1.0]) is None


def test_a_score_is_missing():
    with pytest.raises(ValueError, match="longer"):
        best_with_worst("Hello?", ["a", "b"], [1.0])
