"""The best and the worst of scored replies become one row of preferences."""

import json

import pytest
from files import word_tokenizer

from dual_head import TokenizeOptions, load_pairs, tokenize_pairs
from dual_head.data import Cut
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


def test_a_reply_that_was_cut_is_trained_on_without_an_end(tmp_path):
    row = best_with_worst("ask0", ["good1", Cut("bad1 bad2")], [1.0, 0.0])
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    (pair,), report = load_pairs(str(tmp_path / "pairs.jsonl"))
    assert not report.notes
    tokenizer = word_tokenizer()
    (ids,), _ = tokenize_pairs([pair], tokenizer, TokenizeOptions())
    ends = [ids[name][-1] == tokenizer.eos_token_id for name in ("chosen_ids", "rejected_ids")]
    assert ends == [True, False]


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
