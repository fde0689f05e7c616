"""Log-probabilities of /v1/completions: dictionaries by text, and places in the text."""

import pytest
from files import letters

from dual_head.serve.openai.replies import CompletionForm, TokenTexts
from dual_head.serve.types import Piece, TokenRecord


@pytest.fixture(scope="module")
def tokenizer():
    """A token a byte."""
    return letters()


@pytest.fixture
def form(tokenizer):
    return CompletionForm(TokenTexts(tokenizer), logprobs=True)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_of_tokens_with_one_text_the_likeliest_is_told(tokenizer, form):
    first, second = ids(tokenizer, "é")  # two parts of a character have the same text
    (letter,) = ids(tokenizer, "a")
    record = TokenRecord(first, -0.5, top=((first, -0.5), (second, -1.0), (letter, -2.0)))
    logprobs = form.choice(0, Piece("", (record,)))["logprobs"]
    assert logprobs["top_logprobs"] == [{"\ufffd": -0.5, "a": -2.0}]


def test_the_token_that_was_chosen_is_among_the_likeliest(tokenizer, form):
    a, b = ids(tokenizer, "ab")
    records = (TokenRecord(b, -3.0, top=((a, -0.1),)), TokenRecord(a, -0.1, top=((a, -0.1),)), TokenRecord(b, -3.0))
    logprobs = form.choice(0, Piece("bab", records))["logprobs"]
    assert logprobs["top_logprobs"] == [{"a": -0.1, "b": -3.0}, {"a": -0.1}, {"b": -3.0}]


def test_offsets_are_places_in_the_text(tokenizer, form):
    text = "é你 a!"
    tokens = [*ids(tokenizer, text[:2]), tokenizer.convert_tokens_to_ids("<|im_start|>"), *ids(tokenizer, text[2:])]
    records = [TokenRecord(token, -1.0) for token in tokens]
    expected = [0, 0, 1, 1, 1, 2, 2, 3, 4]  # 2 and 3 bytes of a character, one token that is not in the text, 3 letters
    assert form.choice(0, Piece(text, tuple(records)))["logprobs"]["text_offset"] == expected
    streamed = [form.chunk(1, Piece("", (record,)))["logprobs"]["text_offset"] for record in records]
    assert streamed == [[offset] for offset in expected]
