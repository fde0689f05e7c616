"""Examples to ids: the input alone, and what follows it, with what is to be learnt of both."""

from typing import Any

import pytest
from files import word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dual_head.classify import Example, TextForm
from dual_head.classify.data.collate import ExampleCollator
from dual_head.classify.data.tokenize import ClassifyTokenizeOptions, tokenize_examples
from dual_head.errors import DualHeadError

NAMES = ("good0", "bad0")
FORM = TextForm(reason_prefix=" how ", answer_prefix=" once ")
ROW = Example("ask0 ask1", 1, rationale="good1 good2")


def tokenized(rows=(ROW,), **options):
    lengths = ClassifyTokenizeOptions(**{k: options.pop(k) for k in list(options) if "length" in k or "truncate" in k})
    return tokenize_examples(rows, word_tokenizer(), lengths, names=NAMES, **{"form": FORM, **options})


def words(ids: list[int]) -> str:
    return word_tokenizer().decode(ids)


def test_a_row_is_its_input_then_the_rationale_then_the_answer_then_the_end():
    (row,), _ = tokenized()
    assert words(row.input_ids) == "<s> ask0 ask1"
    assert words(row.rest_ids) == "how good1 good2 once bad0 </s>"


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("before", "once bad0 how good1 good2 </s>"),
        ("absent", "how good1 good2 </s>"),
        ("alone", "once bad0 </s>"),
    ],
)
def test_the_answer_stands_where_it_is_wanted(answer, written):
    (row,), _ = tokenized(form=TextForm(reason_prefix=" how ", answer_prefix=" once ", answer=answer))
    assert words(row.rest_ids) == written


def test_an_answer_of_its_own_stands_for_the_labels_name():
    (row,), _ = tokenized([Example("ask0", 0, rationale="good1", answer="upon")])
    assert words(row.rest_ids) == "how good1 once upon </s>"


def test_a_row_without_a_rationale_has_nothing_after_its_input_and_is_counted():
    (row,), drops = tokenized([Example("ask0", 0)])
    assert row.rest_ids == []
    assert drops.notes["rows without a rationale"] == 1


def test_a_row_without_a_rationale_has_no_answer_alone_either():
    rows, _ = tokenized([ROW, Example("ask0", 0)], form=TextForm(answer="alone", answer_prefix=" once "))
    assert [words(row.rest_ids) for row in rows] == ["once bad0 </s>", ""]


def byte_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """One token a byte, and special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({one: i for i, one in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


@pytest.mark.parametrize("tokenizer", [word_tokenizer(), byte_tokenizer()])
def test_a_special_token_that_a_text_says_is_text_and_the_end_is_the_only_end(tokenizer):
    row = Example("ask0 </s> <s>", 1, rationale="good1 </s> good2")
    (read,), _ = tokenize_examples([row], tokenizer, ClassifyTokenizeOptions(), form=FORM, names=NAMES)
    first = [1] if read.input_ids[0] == 1 else []  # the one that the tokenizer puts there
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(read.input_ids[len(first) :])
    assert read.rest_ids.index(tokenizer.eos_token_id) == len(read.rest_ids) - 1


def test_a_prefix_is_a_special_token_where_the_tokenizer_has_it_and_text_in_a_rationale():
    tokenizer, row = byte_tokenizer("<REASON>", "<ANS>"), Example("ask0", 1, rationale="so <ANS> <REASON> it is")
    reason, answer = tokenizer.convert_tokens_to_ids(["<REASON>", "<ANS>"])
    form = TextForm(reason_prefix="\n<REASON> ", answer_prefix="<ANS>")
    (read,), _ = tokenize_examples([row], tokenizer, ClassifyTokenizeOptions(), form=form, names=NAMES)
    assert tokenizer.decode(read.rest_ids) == "\n<REASON> so <ANS> <REASON> it is<ANS>bad0</s>"
    assert (read.rest_ids.count(reason), read.rest_ids.count(answer)) == (1, 1)
    assert read.rest_ids.index(reason) == 1
    plain, other = byte_tokenizer(), TextForm(reason_prefix="<REASON> ", answer_prefix="<ANS>")
    (read,), _ = tokenize_examples([row], plain, ClassifyTokenizeOptions(), form=other, names=NAMES)
    assert plain.decode(read.rest_ids) == "<REASON> so <ANS> <REASON> it is<ANS>bad0</s>"


def test_rationale_and_answer_is_another_name_of_what_follows_the_input():
    spelt: Any = "rationale + answer"
    assert tokenized(scope=spelt) == tokenized(scope="continuation")


def test_an_input_that_is_too_long_is_dropped_and_located_or_cut_on_the_side_that_was_asked_for():
    long = Example("ask0 ask1 ask2 ask3", 0, id="the long one")
    (kept,), drops = tokenized([long, ROW], max_input_length=3)
    assert kept.index == 1
    assert drops.first["input longer than 3 tokens"] == "the long one"
    (start, _), _ = tokenized([long, ROW], max_input_length=3, truncate_inputs="start")
    (end, _), noted = tokenized([long, ROW], max_input_length=3, truncate_inputs="end")
    assert words(start.input_ids) == "<s> ask2 ask3"
    assert words(end.input_ids) == "<s> ask0 ask1"
    assert noted.notes["inputs cut to 3 tokens"] == 1


def test_a_rationale_that_is_too_long_is_cut_without_an_end_and_counted():
    (row,), drops = tokenized(max_rationale_length=2)
    assert words(row.rest_ids) == "how good1"
    assert drops.notes["rationales cut to 2 tokens"] == 1


def test_nothing_left_is_an_error_that_says_why():
    with pytest.raises(DualHeadError, match="input longer than 2 tokens"):
        tokenized(max_input_length=2)


def test_lengths_beyond_the_positions_are_refused_with_both_numbers():
    with pytest.raises(DualHeadError, match=r"512 tokens and rationales of 1024 make 1536.* has 1024 positions"):
        ClassifyTokenizeOptions().within(1024)


def test_positions_predict_the_token_after_them_on_either_side_of_the_padding():
    rows, _ = tokenized([ROW, Example("ask0", 0)], scope="rationale")
    for side in ("right", "left"):
        batch = ExampleCollator(0, side=side)(rows)
        flat = batch["input_ids"].flatten()
        assert flat[batch["lm_at"] + 1].tolist() == batch["lm_labels"].tolist()
        assert words(batch["lm_labels"].tolist()) == "how good1 good2"
        pooled = batch["input_ids"].gather(1, batch["pool_at"][:, None])[:, 0]
        assert words(pooled.tolist()) == "ask1 ask0"


def test_a_class_among_shares_is_all_of_that_class_and_not_a_missing_label():
    rows, _ = tokenized([Example("ask0", 1), Example("ask1", (0.25, 0.75)), Example("ask2")])
    assert ExampleCollator()(rows)["labels"].tolist() == [[0.0, 1.0], [0.25, 0.75], [-100.0, -100.0]]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (2, "c"),
        ((0.4, 0.3, 0.3), "a"),
        ((0.0, 1.0, 0.0), "b"),
        ((1.0, 0.0, 1.0), "a, c"),
        ((0.0, 0.0, 0.0), "none"),
        ((0.9, 0.1, 0.6), "a, c"),  # no shares, which sum to 1
    ],
)
def test_the_answer_of_any_label_is_written(label, said):
    parts = TextForm().parts(Example("ask0", label, rationale="why"), ("a", "b", "c"))
    assert parts[1] == ("answer", f"\nFinal Answer: {said}")
    assert [kind for kind, _ in TextForm().parts(Example("ask0", None, rationale="why"), ("a",))] == ["rationale"]


def test_labels_may_be_missing_or_shares():
    rows, _ = tokenized([ROW, Example("ask0")])
    assert ExampleCollator()(rows)["labels"].tolist() == [1, -100]
    rows, _ = tokenized([Example("ask0", (0.25, 0.75)), Example("ask1", (1.0, 0.0))])
    assert ExampleCollator()(rows)["labels"].tolist() == [[0.25, 0.75], [1.0, 0.0]]
    rows, _ = tokenized([Example("ask0")])
    assert ExampleCollator()(rows)["labels"].tolist() == [-100]
    assert "labels" not in ExampleCollator(learn=False)(rows)
