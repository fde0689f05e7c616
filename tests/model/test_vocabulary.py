"""Two tokenizers side by side: which ids mean other tokens, and which token of one is which of the other."""

import pytest
from files import SPECIAL, word_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dual_head.model.transfer import UNMAPPED
from dual_head.model.vocabulary import compare_tokenizers, vocabulary_map

ABC = [*SPECIAL, "a", "b", "c"]


def tokenizer(words: list[str], **roles: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words whose special tokens are only those that are said."""
    unknown = roles.get("unk_token", words[0])
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **roles)


# ---- comparing ---------------------------------------------------------------------------------------------


def test_a_tokenizer_is_the_same_as_its_copy():
    found = compare_tokenizers(word_tokenizer(ABC), word_tokenizer([*ABC]))
    assert (found.same, found.differing, found.coverage) == (True, [], 1.0)
    assert str(found) == "the same tokenizer (7 tokens)"


def test_as_many_tokens_in_another_order_are_others():
    found = compare_tokenizers(word_tokenizer(ABC), word_tokenizer([*SPECIAL, "b", "a", "c"]))
    assert not found.same
    assert found.differing == [(4, "a", "b"), (5, "b", "a")]
    assert (found.trained, found.other, found.shared, found.coverage) == (7, 7, 7, 1.0)


def test_one_token_more_is_a_difference_on_either_side():
    more = word_tokenizer([*ABC, "d"])
    found = compare_tokenizers(word_tokenizer(ABC), more)
    assert (found.differing, found.shared, found.coverage) == ([(7, None, "d")], 7, 7 / 8)
    fewer = compare_tokenizers(more, word_tokenizer(ABC))
    assert (fewer.differing, fewer.coverage) == ([(7, "d", None)], 1.0)


def test_tokens_added_to_a_tokenizer_count():
    added = word_tokenizer(ABC)
    added.add_tokens(["d"])
    assert compare_tokenizers(word_tokenizer(ABC), added).differing == [(7, None, "d")]


def test_the_difference_is_said_with_counts_and_three_examples():
    here = word_tokenizer([*SPECIAL, *"wxyza"])
    assert str(compare_tokenizers(word_tokenizer(ABC), here)) == (
        "5 of 9 token ids mean other tokens (for example 4: 'a' there, 'w' here, 5: 'b' there, 'x' here, "
        "6: 'c' there, 'y' here); 5 of 9 tokens (55.6%) exist in both"
    )


# ---- mapping -----------------------------------------------------------------------------------------------


def test_tokens_are_mapped_by_their_strings_and_the_rest_is_unmapped():
    here = word_tokenizer([*SPECIAL, "c", "new", "a"])
    assert vocabulary_map(word_tokenizer(ABC), here, 9).tolist() == [0, 1, 2, 3, 6, UNMAPPED, 4, UNMAPPED, UNMAPPED]


def test_a_backbone_with_fewer_logits_than_tokens_has_a_map_as_wide_as_they_are():
    assert vocabulary_map(word_tokenizer(ABC), word_tokenizer(ABC), 5).tolist() == [0, 1, 2, 3, 4]


def test_special_tokens_are_mapped_by_their_role():
    there = tokenizer(["<s>", "</s>", "<unk>", "a"], bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    here = tokenizer(["[UNK]", "a", "[EOS]", "[BOS]"], bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]")
    assert vocabulary_map(there, here, 4).tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize("roles", [["bos_token", "eos_token"], ["eos_token", "bos_token", "unk_token"]])
def test_one_token_of_several_roles_is_the_end(roles):
    there = tokenizer(["<s>", "</s>", "<unk>", "a"], bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    gpt2 = tokenizer(["a", "<|endoftext|>"], **dict.fromkeys(roles, "<|endoftext|>"))
    assert vocabulary_map(there, gpt2, 2).tolist() == [3, 1]


def test_a_role_that_only_one_of_them_has_maps_nothing():
    there, here = tokenizer(["a", "b"]), tokenizer(["b", "</s>"], eos_token="</s>")
    assert vocabulary_map(there, here, 2).tolist() == [1, UNMAPPED]
