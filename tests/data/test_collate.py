"""A batch of pairs is what one would write on squared paper."""

import random

import pytest
import torch

from dual_head.data import collate
from dual_head.data.collate import NO_TOKEN, PairCollator
from dual_head.errors import DualHeadError

PARTS = ("prompt", "chosen", "rejected")
ROWS = [
    {"prompt_ids": [11, 12, 13], "chosen_ids": [21, 2], "rejected_ids": [31, 32, 2]},
    {"prompt_ids": [14], "chosen_ids": [22, 23, 2], "rejected_ids": [33]},
]


@pytest.fixture(params=[False, True], ids=["a prompt for each response", "a prompt for both responses"])
def batch(request):
    return PairCollator(pad_token_id=0, share_prompt=request.param)(ROWS)


def test_each_response_has_a_row_where_prompts_are_not_shared():
    batch = PairCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [
        [11, 12, 13, 21, 2, 0],
        [11, 12, 13, 31, 32, 2],
        [14, 22, 23, 2, 0, 0],
        [14, 33, 0, 0, 0, 0],
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 0],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 0, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    assert batch["at"].tolist() == [2, 3, 8, 9, 10, 12, 13, 14, 18]
    assert "parts" not in batch


def test_a_shared_prompt_is_written_once_and_predicts_both_first_tokens():
    batch = PairCollator(pad_token_id=0, share_prompt=True)(ROWS[:1])
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 2, 31, 32, 2]]
    assert batch["parts"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    # Either response goes on counting where the prompt ends.
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert batch["at"].tolist() == [2, 3, 2, 5, 6]


PACKED = [*ROWS, {"prompt_ids": [15], "chosen_ids": [2], "rejected_ids": [35]}]


def test_pairs_follow_one_another_in_rows_as_long_as_the_longest():
    batch = PairCollator(pad_token_id=0, share_prompt=True)(PACKED)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 2, 31, 32, 2], [14, 22, 23, 2, 33, 15, 2, 35]]
    assert batch["parts"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 3, 1, 0, 1, 1]]
    assert batch["starts"] == [0, 8, 13]
    assert batch["at"].tolist() == [2, 3, 2, 5, 6, 8, 9, 10, 8, 13, 13]
    assert batch["labels"].tolist() == [21, 2, 31, 32, 2, 22, 23, 2, 33, 2, 35]


def test_pairs_find_their_rows_wherever_they_are_in_the_batch():
    batch = PairCollator(pad_token_id=0, share_prompt=True)(PACKED[::-1])
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 2, 31, 32, 2], [14, 22, 23, 2, 33, 15, 2, 35]]
    assert batch["starts"] == [13, 8, 0]
    assert batch["labels"].tolist() == [2, 35, 22, 23, 2, 33, 21, 2, 31, 32, 2]


def test_what_fills_a_row_is_part_of_nothing(monkeypatch):
    """Tokens 8 and 5: in one row 13 looks at 13 for each, in two 16 at 8."""
    monkeypatch.setattr(collate, "ALONE", 1)
    batch = PairCollator(pad_token_id=0, share_prompt=True)(ROWS)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 2, 31, 32, 2], [14, 22, 23, 2, 33, 0, 0, 0]]
    assert batch["parts"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, -1, -1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 3, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([300] * 4, (4, 300)),  # nothing to save
        ([600, 200, 200, 200], (2, 600)),
        ([300, 200, 200, 200], (1, 900)),  # 900 tokens that look at 900 rather than 1,000 at 500
        ([4000, 2500, 2500], (2, 5000)),  # 10,000 tokens that look at 5,000 rather than 9,000 at 9,000
    ],
)
def test_rows_are_as_long_as_it_pays(lengths, shape):
    rows = [{"prompt_ids": [5] * (n - 2), "chosen_ids": [2], "rejected_ids": [2]} for n in lengths]
    assert PairCollator(pad_token_id=0, share_prompt=True)(rows)["input_ids"].shape == shape


@pytest.mark.parametrize("seed", range(5))
def test_pairs_in_a_row_never_overlap_and_lose_no_token(seed):
    draw = random.Random(seed)
    rows = [{f"{part}_ids": [draw.randint(1, 9)] * draw.choice((1, 2, 9)) for part in PARTS} for _ in range(9)]
    batch = PairCollator(pad_token_id=0, share_prompt=True)(rows)
    flat, lengths = batch["input_ids"].flatten().tolist(), [sum(map(len, row.values())) for row in rows]
    assert len(batch["input_ids"]) < len(rows)
    for start, length, row in zip(batch["starts"], lengths, rows, strict=True):
        assert flat[start : start + length] == [token for part in PARTS for token in row[f"{part}_ids"]]
    assert (batch["input_ids"] != 0).sum() == sum(lengths)


def test_of_shared_rows_one_can_make_the_sequences_again():
    apart, shared = (PairCollator(pad_token_id=0, share_prompt=share)(ROWS) for share in (False, True))
    there = shared["sequences"] != NO_TOKEN
    sequences = shared["input_ids"].flatten()[shared["sequences"]].where(there, 0)
    assert sequences.tolist() == [
        [0, 11, 12, 13, 21, 2],
        [11, 12, 13, 31, 32, 2],
        [0, 0, 14, 22, 23, 2],
        [0, 0, 0, 0, 14, 33],
    ]
    assert sequences[there].tolist() == apart["input_ids"][apart["input_ids"] != 0].tolist()
    assert torch.equal(shared["sequences"].flatten()[shared["within"]], shared["at"])


def test_all_that_is_scored_is_in_the_tail_of_the_sequences():
    shared = PairCollator(pad_token_id=0, share_prompt=True)(ROWS)
    assert shared["tail"] == 4  # three tokens, and what predicts the first of them
    length = shared["sequences"].shape[1]
    assert (shared["within"] % length >= length - shared["tail"]).all()


def test_response_tokens_come_pair_by_pair_and_chosen_first(batch):
    assert batch["labels"].tolist() == [21, 2, 31, 32, 2, 22, 23, 2, 33]
    assert batch["row"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert batch["counts"] == [2, 3, 3, 1]


def test_every_token_is_predicted_by_the_one_before_it_in_its_own_sequence(batch):
    before = batch["input_ids"].flatten()[batch["at"]].tolist()
    assert before == [13, 21, 13, 31, 32, 14, 22, 23, 14]
    assert (batch["position_ids"].flatten()[batch["at"]] + 1).tolist() == [3, 4, 3, 4, 5, 1, 2, 3, 1]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("pad", [2, 11, 21], ids=["eos", "a prompt's token", "a response's token"])
def test_the_pad_token_may_be_any_token(pad, share, monkeypatch):
    monkeypatch.setattr(collate, "ALONE", 1)  # rows that padding fills
    usual, odd = (PairCollator(pad_token_id=p, share_prompt=share)(ROWS) for p in (0, pad))
    padding = usual["input_ids"] == 0
    assert (odd["input_ids"][padding] == pad).all()
    assert torch.equal(odd["input_ids"][~padding], usual["input_ids"][~padding])
    assert all(torch.equal(odd[key], usual[key]) for key in ("position_ids", "at", "labels", "row"))


def test_the_rows_are_left_as_they_were():
    before = [{column: list(ids) for column, ids in row.items()} for row in ROWS]
    PairCollator(pad_token_id=0)(ROWS)
    assert before == ROWS


def test_a_tokenizer_without_pad_token_is_told_to_use_eos():
    with pytest.raises(DualHeadError, match="eos_token_id"):
        PairCollator(pad_token_id=None)  # pyright: ignore[reportArgumentType]
