"""Replies that must be JSON, JSON of a schema, or a match of a regular expression."""

import json
import re

import pytest
import torch
from engines import TOKENIZER, small_engine, tiny_model
from files import word_tokenizer
from models import EOS, VOCAB

from dual_head.errors import DualHeadError
from dual_head.serve.grammar import Grammars, allowed_tokens
from dual_head.serve.types import GenerationRequest, Grammar, Sampling

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["Ann", "Bo"]}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
        "additionalProperties": False,
    }
)
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])"


@pytest.fixture(scope="module")
def engine():
    model = tiny_model("hidden", "gate")
    model.generation_config.eos_token_id = EOS
    with small_engine(model) as running:
        yield running


def texts(engine, grammar, count=6, max_tokens=60):
    """Samples of one grammar at several strengths, hot enough that nothing but the grammar holds them."""
    pieces = engine.generate(
        [
            GenerationRequest([5, 6], max_tokens, {"hidden": i / 2}, Sampling(2.0, seed=i, grammar=grammar))
            for i in range(count)
        ]
    )
    return [(piece.text, piece.finish_reason) for piece in pieces]


def test_json_of_a_schema_parses_and_fits(engine):
    replies = texts(engine, Grammar("json_schema", PERSON))
    for text, reason in replies:
        assert reason == "stop"
        person = json.loads(text)
        assert set(person) == {"name", "old"}
        assert person["name"] in ("Ann", "Bo")
        assert isinstance(person["old"], bool)
    assert len(set(replies)) > 1


def test_a_regular_expression_matches_whole(engine):
    replies = texts(engine, Grammar("regex", DATE))
    assert all(re.fullmatch(DATE, text) and reason == "stop" for text, reason in replies)
    assert len(set(replies)) > 1


def test_any_object_parses_where_it_ends_in_time(engine):
    # Where tokens run out, what there is must still be the beginning of an object.
    for text, reason in texts(engine, Grammar("json"), count=12):
        assert text.lstrip().startswith("{")
        if reason == "stop":
            assert isinstance(json.loads(text), dict)


def test_rows_without_a_grammar_are_left_as_they_were(engine):
    plain = GenerationRequest([5, 6], 10, {"hidden": 1.0}, Sampling(seed=4))
    bound = GenerationRequest([5, 6], 10, {"hidden": 1.0}, Sampling(seed=4, grammar=Grammar("regex", DATE)))
    alone = engine.generate([plain])[0].text
    assert [piece.text for piece in engine.generate([bound, plain, bound])][1] == alone


def test_a_grammar_ends_a_reply_even_where_the_end_is_ignored(engine):
    request = GenerationRequest([5], 40, {}, Sampling(seed=1, grammar=Grammar("regex", DATE)), ignore_eos=True)
    (piece,) = engine.generate([request])
    assert re.fullmatch(DATE, piece.text)
    assert piece.finish_reason == "stop"


def test_allowed_tokens_are_those_that_may_begin():
    matcher = Grammars(TOKENIZER, VOCAB, [EOS]).matcher(Grammar("regex", "(a|bc)"))
    first = allowed_tokens([matcher], VOCAB)[0].nonzero()[:, 0].tolist()
    assert TOKENIZER.convert_ids_to_tokens(first) == ["a", "b"]
    assert matcher.consume_token(TOKENIZER.convert_tokens_to_ids("a"))
    assert torch.equal(allowed_tokens([matcher], VOCAB)[0].nonzero()[:, 0], torch.tensor([EOS]))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("regex", "(a"), "regular expression cannot be used"),
        (Grammar("json_schema", "{"), "JSON schema cannot be used"),
        (Grammar("json_schema", '{"type": "nothing"}'), "JSON schema cannot be used"),
    ],
    ids=str,
)
def test_what_is_no_grammar_is_refused(engine, grammar, words):
    with pytest.raises(DualHeadError, match=words):
        engine.generate([GenerationRequest([5], 4, {}, Sampling(grammar=grammar))])


def test_a_grammar_needs_an_end():
    with pytest.raises(DualHeadError, match="needs an end-of-sequence token"):
        Grammars(TOKENIZER, VOCAB, []).matcher(Grammar("json"))


def test_a_grammar_needs_tokens_that_are_bytes():
    words = word_tokenizer()
    with pytest.raises(DualHeadError, match="tokens are bytes of the text"):
        Grammars(words, len(words), [EOS]).matcher(Grammar("json"))
