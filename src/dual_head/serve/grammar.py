"""Texts that must be JSON, JSON of a schema, or a match of a regular expression: which tokens may come next.

llguidance does the work; one matcher goes along with each request, and tells a row of bits before every token.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dual_head.errors import DualHeadError, require
from dual_head.serve.types import Grammar

ANY_OBJECT = '{"type": "object"}'
Matcher = Any  # llguidance.LLMatcher


class Grammars:
    """Makes matchers for one tokenizer; `vocabulary` is how many logits the model has."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: list[int]):
        self._tokenizer, self._vocabulary, self._end_tokens = tokenizer, vocabulary, end_tokens
        self._tokens: Any = None
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the start of the text. Errors: what is no grammar; a tokenizer that it cannot read."""
        return self._compiled(grammar).deep_copy()

    def _compile(self, grammar: Grammar) -> Matcher:
        llguidance = require("llguidance", "serve")
        try:
            if grammar.kind == "regex":
                text = llguidance.LLMatcher.grammar_from_regex(grammar.text)
            else:
                text = llguidance.LLMatcher.grammar_from_json_schema(
                    ANY_OBJECT if grammar.kind == "json" else grammar.text
                )
        except ValueError as error:
            raise _refused(grammar, str(error)) from error
        matcher = llguidance.LLMatcher(self._token_bytes(), text)
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        return matcher

    def _token_bytes(self) -> Any:
        if self._tokens is None:
            if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
                raise DualHeadError("A grammar needs a fast tokenizer (tokenizer.json), and this model has none.")
            if not self._end_tokens:
                raise DualHeadError(
                    "A grammar needs an end-of-sequence token, and neither model nor tokenizer has one."
                )
            make = require("llguidance.hf", "serve").from_tokenizer
            try:
                self._tokens = make(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_tokens)
            except ValueError as error:
                raise DualHeadError(
                    f"A grammar needs a tokenizer whose tokens are bytes of the text: {error}. Leave the grammar out."
                ) from error
        return self._tokens


def _refused(grammar: Grammar, reason: str) -> DualHeadError:
    names = {"json_schema": "JSON schema", "regex": "regular expression", "json": "grammar"}
    return DualHeadError(f"The {names[grammar.kind]} cannot be used: {reason.splitlines()[0] if reason else 'empty'}")


def allowed_tokens(matchers: list[Matcher], vocabulary: int) -> Tensor:
    """bool [m, V]: which tokens may come next under each matcher."""
    fill = require("llguidance.torch", "serve").fill_next_token_bitmask
    words = torch.zeros(len(matchers), -(-vocabulary // 32), dtype=torch.int32)
    for i, matcher in enumerate(matchers):
        fill(matcher, words, i)
    bits = (words[..., None] >> torch.arange(32, dtype=torch.int32)) & 1  # [m, words, 32], the lowest bit first
    return bits.flatten(1)[:, :vocabulary].bool()
