"""A batch of pairs is what one would write on squared paper."""

import pytest
import torch

from dual_head.data.collate import PairCollator, split_sides
from dual_head.errors import DualHeadError

ROWS = [
    {"prompt_ids": [11, 12, 13], "chosen_ids": [21, 2], "rejected_ids": [31, 32, 2]},
    {"prompt_ids": [14], "chosen_ids": [22, 23, 2], "rejected_ids": [33]},
]


def test_chosen_rows_come_first_and_padding_is_on_the_right():
    batch = PairCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [
        [11, 12, 13, 21, 2, 0],
        [14, 22, 23, 2, 0, 0],
        [11, 12, 13, 31, 32, 2],
        [14, 33, 0, 0, 0, 0],
    ]
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 0],
    ]
    assert batch["response_mask"].int().tolist() == [
        [0, 0, 0, 1, 1, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [0, 1, 0, 0, 0, 0],
    ]


def test_masks_select_what_embeddings_and_indexing_expect():
    batch = PairCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["response_mask"].dtype == torch.bool
    assert batch["input_ids"][batch["response_mask"]].tolist() == [21, 2, 22, 23, 2, 31, 32, 2, 33]


@pytest.mark.parametrize("pad", [2, 11, 21], ids=["eos", "a prompt's token", "a response's token"])
def test_the_pad_token_may_be_any_token(pad):
    usual, odd = PairCollator(pad_token_id=0)(ROWS), PairCollator(pad_token_id=pad)(ROWS)
    assert torch.equal(odd["attention_mask"], usual["attention_mask"])
    assert torch.equal(odd["response_mask"], usual["response_mask"])
    there = usual["attention_mask"].bool()
    assert torch.equal(odd["input_ids"][there], usual["input_ids"][there])
    assert (odd["input_ids"][~there] == pad).all()


def test_the_rows_are_left_as_they_were():
    before = [{column: list(ids) for column, ids in row.items()} for row in ROWS]
    PairCollator(pad_token_id=0)(ROWS)
    assert before == ROWS


def test_split_sides_gives_back_chosen_and_rejected():
    per_row = PairCollator(pad_token_id=0)(ROWS)["response_mask"].sum(-1)
    chosen, rejected = split_sides(per_row)
    assert (chosen.tolist(), rejected.tolist()) == ([2, 3], [3, 1])


@pytest.mark.parametrize("shape", [(6,), (6, 5), (2, 3, 4)])
def test_split_sides_splits_rows_and_nothing_else(shape):
    per_row = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    chosen, rejected = split_sides(per_row)
    assert torch.equal(torch.cat([chosen, rejected]), per_row)
    assert chosen.shape == rejected.shape


def test_a_tokenizer_without_pad_token_is_told_to_use_eos():
    with pytest.raises(DualHeadError, match="eos_token_id"):
        PairCollator(pad_token_id=None)  # pyright: ignore[reportArgumentType]
