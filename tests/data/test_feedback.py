"""Single replies with labels or scores: read from rows of any spelling, and each given a reply to another prompt."""

import json
import math

import pytest
from files import word_tokenizer

from dual_head.data import Cut, Feedback, Pair, split_by_prompt
from dual_head.data.collate import PairCollator
from dual_head.data.load import load_feedback, load_pairs
from dual_head.data.tokenize import TokenizeOptions, longest_sequence, pair_lengths, tokenize_feedback
from dual_head.errors import DualHeadError


@pytest.fixture
def load(tmp_path):
    """Write rows to a file of lines and load it."""

    def load(*rows, **options):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return load_feedback(str(file), **options)

    return load


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


HELLO = Feedback((user("Hello"),), "Hi!", True)
GOOD = {"prompt": "2 + 2 =", "completion": " 4", "label": True}

# ---- labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reply"),
    [
        (GOOD, Feedback("2 + 2 =", " 4", True)),
        ({**GOOD, "label": False}, Feedback("2 + 2 =", " 4", False)),
        ({"prompt": [user("Hello")], "completion": [assistant("Hi!")], "label": True}, HELLO),
        ({"prompt": [user("Hello")], "completion": assistant("Hi!"), "label": True}, HELLO),
        ({"prompt": [user("Hello")], "completion": [user("Hello"), assistant("Hi!")], "label": True}, HELLO),
        ({"prompt": "Hello", "completion": [assistant("Hi!")], "label": True}, HELLO),
        ({"prompt": [user("Hello")], "completion": "Hi!", "label": True}, HELLO),
        ({"question": "Hello", "response": "Hi!", "label": True}, HELLO),
        (
            {"system": "Be kind.", "prompt": "Hello", "reply": "Hi!", "label": True},
            Feedback(({"role": "system", "content": "Be kind."}, user("Hello")), "Hi!", True),
        ),
    ],
)
def test_a_reply_is_read_as_it_is_written(load, row, reply):
    replies, report = load(row)
    assert replies == [reply]
    assert (report.rows, report.kept, report.reasons) == (1, 1, {})


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True", "1"])
def test_tables_write_labels_in_several_ways(load, label):
    (reply,), _ = load({**GOOD, "label": label})
    assert reply.label is True


@pytest.mark.parametrize("label", ["good", 2, -1, [True], {"label": True}, "yes"])
def test_a_label_that_is_none_is_an_error_that_names_its_row(load, label):
    with pytest.raises(DualHeadError, match=r"rows.jsonl:2: The label must be true or false .* not"):
        load(GOOD, {"prompt": "a", "completion": " b", "label": label})


def test_rows_without_what_is_needed_are_counted_by_reason(load):
    replies, report = load(
        GOOD,
        {**GOOD, "label": None},
        {**GOOD, "label": ""},
        {**GOOD, "completion": None},
        {**GOOD, "completion": " "},
        {"completion": " 4", "label": True},
        {**GOOD, "prompt": ""},
        {**GOOD, "prompt": 7},
        {**GOOD, "completion": [user("who?")]},
        GOOD,
        "{",
    )
    assert replies == [Feedback("2 + 2 =", " 4", True)]
    assert report.reasons == {
        "no label": 2,
        "no reply": 1,
        "empty reply": 1,
        "no column of a prompt": 1,
        "empty prompt": 1,
        "malformed row": 1,
        "last turn is not the assistant's": 1,
        "duplicate reply": 1,
        "malformed line": 1,
    }
    assert report.first["no label"].endswith("rows.jsonl:2")


def test_raters_who_disagree_are_both_heard(load):
    replies, _ = load(GOOD, {**GOOD, "label": False})
    assert [reply.label for reply in replies] == [True, False]


@pytest.mark.parametrize(
    "row", [{"completion": [assistant("b", finish_reason="length")]}, {"completion": "b", "cut": True}]
)
def test_a_reply_that_was_cut_stays_without_an_end(load, row):
    (reply,), _ = load({"prompt": [user("a")], "label": True, **row})
    assert isinstance(reply.completion, Cut)
    tokens, _ = tokenize_feedback([reply], TOKENIZER, TokenizeOptions())
    assert tokens[0]["completion_ids"][-1] != TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    ("value", "cut"),
    [("true", True), ("True", True), ("1", True), (1.0, True), ("false", False), (0, False), ("", False)],
)
def test_tables_write_in_several_ways_that_a_reply_was_cut(load, value, cut):
    (reply,), _ = load({**GOOD, "cut": value})
    assert isinstance(reply.completion, Cut) == cut


def test_what_says_neither_that_a_reply_was_cut_nor_that_it_was_not_is_an_error_that_names_its_row(load):
    with pytest.raises(DualHeadError, match=r"rows.jsonl:2: \"cut\" must be true or false .* not 'maybe'"):
        load(GOOD, {**GOOD, "completion": " 5", "cut": "maybe"})


def test_keys_of_messages_that_are_not_read_are_noted(load):
    _, report = load({"prompt": [user("a")], "completion": [assistant("b", thoughts="hm")], "label": True})
    assert report.notes == {"thoughts of messages left out": 1}


# ---- scores ---------------------------------------------------------------------------------------------


def scored(*scores):
    return [{"prompt": "a", "completion": f" {i}", "score": score} for i, score in enumerate(scores)]


def test_a_reply_is_desirable_from_the_threshold_on(load):
    replies, _ = load(*scored(-1, 0.5, 0.4999, "2", math.inf, -math.inf), label_threshold=0.5)
    assert [reply.label for reply in replies] == [False, True, False, True, True, False]


def test_a_score_that_is_not_there_is_counted_and_one_that_is_no_number_is_an_error(load):
    replies, report = load(*scored(1, None, math.nan, "", "nan"), label_threshold=0)
    assert (len(replies), report.reasons) == (1, {"no score": 4})
    for score in ("great", True, [1]):
        with pytest.raises(DualHeadError, match=r"rows.jsonl:2: The score must be a number, not"):
            load(*scored(1, score), label_threshold=0)


def test_scores_without_a_threshold_are_refused_with_one_to_begin_with(load):
    with pytest.raises(DualHeadError, match="--label_threshold 2 halves the first 3, which run from 1 to 9"):
        load(*scored(1, 9, 2))


def test_a_threshold_without_scores_is_refused(load):
    with pytest.raises(DualHeadError, match=r"Format 'unpaired' has no score to compare with label_threshold=0\.5"):
        load(GOOD, label_threshold=0.5)
    with pytest.raises(DualHeadError, match="Format 'trl' has no score"):
        load({"prompt": "a", "chosen": " b", "rejected": " c"}, label_threshold=0.5)


def test_with_a_threshold_scores_count_and_labels_beside_them_do_not(load):
    rows = [{**row, "label": True} for row in scored(1, 3)]
    assert [reply.label for reply in load(*rows)[0]] == [True, True]
    assert [reply.label for reply in load(*rows, label_threshold=2)[0]] == [False, True]


# ---- pairs and replies ----------------------------------------------------------------------------------


def test_a_pair_gives_two_replies(load):
    replies, report = load({"prompt": "a", "chosen": " b", "rejected": " c"})
    assert replies == [Feedback("a", " b", True), Feedback("a", " c", False)]
    assert report.kept == 1
    assert report.notes == {"a pair read as two replies, the chosen one desirable": 1}


@pytest.mark.parametrize(("column", "value"), [("label", True), ("score", 1)])
def test_where_pairs_are_needed_single_replies_are_refused_with_what_would_be_right(tmp_path, column, value):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": " b", column: value}))
    with pytest.raises(DualHeadError, match=f"single replies with a {column}.*'dual-head train kto'"):
        load_pairs(str(file))


def test_a_file_without_a_usable_reply_is_refused_with_the_reasons(load):
    with pytest.raises(DualHeadError, match=r"(?s)No usable reply .*0 rows read"):
        load()
    with pytest.raises(DualHeadError, match=r"(?s)No usable reply .*1 dropped: no label"):
        load({**GOOD, "label": None})


def test_replies_to_one_prompt_are_held_out_together():
    rows = [Feedback(f"p{i % 10}", f" {i}", True) for i in range(40)]
    training, held_out = split_by_prompt(rows, 0.5)
    assert {row.prompt for row in training}.isdisjoint(row.prompt for row in held_out)
    assert len(training) + len(held_out) == 40


# ---- token ids ------------------------------------------------------------------------------------------

TOKENIZER = word_tokenizer()


def ids(text):
    return TOKENIZER.convert_tokens_to_ids(text.split())


def test_each_reply_is_also_given_to_another_prompt():
    rows = [Feedback("ask1", " good1", True), Feedback("ask2", " bad1 bad2", False), Feedback("ask3", " good3", True)]
    tokens, report = tokenize_feedback(rows, TOKENIZER, TokenizeOptions())
    assert tokens["prompt_ids"] == [[1, *ids(f"ask{i}")] for i in (1, 2, 3)]
    replies = [[*ids(text), 2] for text in ("good1", "bad1 bad2", "good3")]
    assert tokens["completion_ids"] == replies
    assert tokens["mismatched_ids"] == [replies[2], replies[0], replies[1]]
    assert tokens["label"] == [True, False, True]
    assert (report.rows, report.kept, report.notes) == (3, 3, {})
    assert pair_lengths(tokens) == pair_lengths(list(tokens)) == [2 + 2 + 2, 2 + 3 + 2, 2 + 2 + 3]
    assert longest_sequence(tokens) == 2 + 3


@pytest.mark.parametrize("counts", [(1, 1), (4, 3, 1), (2, 2, 2), (3, 1, 1, 1), (5, 5), (1, 6, 5)])
def test_no_prompt_meets_its_own_replies_where_none_has_more_than_half_of_them(counts):
    rows = [Feedback(f"ask{i}", f" good{i} bad{n}", True) for i, count in enumerate(counts) for n in range(count)]
    for order in (rows, rows[::-1], sorted(rows, key=lambda row: row.completion[-1])):
        tokens, report = tokenize_feedback(order, TOKENIZER, TokenizeOptions())
        assert sorted(tokens["mismatched_ids"]) == sorted(tokens["completion_ids"])  # each once
        own = {(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in tokens}
        assert not any((tuple(row["prompt_ids"]), tuple(row["mismatched_ids"])) in own for row in tokens)
        assert not report.notes


def test_prompts_with_more_than_half_of_all_rows_are_noted():
    rows = [Feedback("ask1", f" good{n}", True) for n in range(5)]
    _, report = tokenize_feedback(rows, TOKENIZER, TokenizeOptions())
    assert report.notes == {"compared with another reply to its own prompt, which has over half of all rows": 5}
    _, report = tokenize_feedback([*rows, Feedback("ask2", " bad1", False)], TOKENIZER, TokenizeOptions())
    assert list(report.notes.values()) == [4]


def test_a_mismatched_reply_is_cut_to_the_length_that_is_left():
    rows = [Feedback("ask1 ask2 ask3", " good1", True), Feedback("ask4", " bad1 bad2 bad3", False)]
    tokens, _ = tokenize_feedback(rows, TOKENIZER, TokenizeOptions(max_length=6))
    assert tokens["mismatched_ids"] == [ids("bad1 bad2"), [*ids("good1"), 2]]


def test_a_batch_lies_as_pairs_do_with_labels_beside():
    rows = [
        {"prompt_ids": [1, 5], "completion_ids": [7, 2], "mismatched_ids": [9], "label": True},
        {"prompt_ids": [1], "completion_ids": [9], "mismatched_ids": [7, 2], "label": False},
    ]
    pairs = [
        {"prompt_ids": [1, 5], "chosen_ids": [7, 2], "rejected_ids": [9]},
        {"prompt_ids": [1], "chosen_ids": [9], "rejected_ids": [7, 2]},
    ]
    for share in (False, True):
        batch, known = dict(PairCollator(0, share_prompt=share)(rows)), PairCollator(0, share_prompt=share)(pairs)
        assert batch.pop("desirable").tolist() == [True, False]
        assert batch.keys() == known.keys()
        assert all(x.equal(known[name]) if hasattr(x, "equal") else x == known[name] for name, x in batch.items())


def test_pairs_are_still_pairs(load, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "a", "chosen": " b", "rejected": " c", "label": True, "score": 3}))
    assert load_pairs(str(file))[0] == [Pair("a", " b", " c")]
