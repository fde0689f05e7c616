"""Text that becomes certain as tokens come."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dual_head.serve.reply import Reply
from dual_head.serve.types import TokenRecord

ENDS = (0,)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, as GPT-2 writes them, and one that ends."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def records(tokenizer, text):
    return [TokenRecord(id=token, logprob=0.0) for token in tokenizer(text)["input_ids"]]


def pieces(tokenizer, text, stop=(), ends=ENDS, end=()):
    """The pieces of a reply whose tokens come one by one, and then those of `end`."""
    tokens = [*records(tokenizer, text), *[TokenRecord(id=token, logprob=0.0) for token in end]]
    reply = Reply(tokenizer, stop, ends)
    made = []
    for i, token in enumerate(tokens):
        made.append(reply.add([token], finished=i == len(tokens) - 1))
        if made[-1].finish_reason:
            break
    return made


def test_pieces_add_up_to_the_text_and_parts_of_characters_wait(tokenizer):
    text = "Zoë said: 你好 🙂!"
    made = pieces(tokenizer, text)
    assert "".join(piece.text for piece in made) == text
    assert all("�" not in piece.text for piece in made)
    assert made[-1].finish_reason == "length"
    assert [piece.text for piece in made[:4]] == ["Z", "o", "", "ë"]


def test_a_character_that_never_ends_is_shown_at_the_end(tokenizer):
    reply = Reply(tokenizer)
    half = records(tokenizer, "é")[:1]
    assert reply.add(half, finished=False).text == ""
    assert reply.add([], finished=True).text == "�"


def test_a_stop_string_ends_the_text_before_it_however_it_is_cut(tokenizer):
    for stop in (("END",), ("x", "END"), ("D", "ND")):
        cut = min(i for s in stop if (i := "one END two".find(s)) >= 0)
        made = pieces(tokenizer, "one END two", stop)
        assert "".join(piece.text for piece in made) == "one END two"[:cut]
        assert made[-1].finish_reason == "stop"


def test_what_could_begin_a_stop_string_is_held_back_no_longer_than_it_could(tokenizer):
    made = pieces(tokenizer, "a EN b ENx", ("END",))
    assert [piece.text for piece in made] == ["a", " ", "", "", "EN ", "b", " ", "", "", "ENx"]


def test_a_reply_that_ends_while_something_is_held_back_hands_it_out(tokenizer):
    made = pieces(tokenizer, "so EN", ("END",), end=ENDS)
    assert "".join(piece.text for piece in made) == "so EN"
    assert made[-1].finish_reason == "stop"


def test_an_end_is_no_text_and_ends(tokenizer):
    made = pieces(tokenizer, "ab", end=ENDS)
    assert ("".join(piece.text for piece in made), made[-1].finish_reason) == ("ab", "stop")
    ignored = pieces(tokenizer, "ab", ends=(), end=ENDS)
    assert ignored[-1].finish_reason == "length"


def test_every_token_comes_with_exactly_one_piece(tokenizer):
    made = pieces(tokenizer, "é END", ("END",))
    assert [token for piece in made for token in piece.tokens] == records(tokenizer, "é END")
