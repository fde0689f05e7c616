"""Replies as OpenAI's clients read them: whole ones and the chunks of a stream, with log-probabilities and traces."""

import json
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.serve.reply import Reply
from dual_head.serve.types import Piece, TokenRecord

LOWEST = -9999.0  # OpenAI's word for a log-probability of minus infinity, which JSON has no word for


class TokenTexts:
    """The text of single tokens, with the space that a token begins with: decoded behind another one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._lead = self._decoded(self._before)
        self.of = lru_cache(maxsize=65_536)(self._of)

    def _of(self, token: int) -> str:
        return self._decoded([*self._before, token])[len(self._lead) :]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def reply(self) -> Reply:
        """What gives the text of tokens that come one after another."""
        return Reply(self._tokenizer)

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as chat log-probabilities have it; no bytes where it is a part of a character."""
        text = self.of(token)
        return {
            "token": text,
            "logprob": max(logprob, LOWEST),
            "bytes": None if "\ufffd" in text else list(text.encode()),
        }


class ChatForm:
    """How /v1/chat/completions answers; tools: what the model may call, where its replies are parsed for calls."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, texts: TokenTexts, logprobs: bool, parser: "ToolParser | None" = None):
        self.texts, self.logprobs, self.parser = texts, logprobs, parser

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the first chunk."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk."""
        delta = {"content": piece.text} if piece.text or piece.finish_reason is None else {}
        return self._choice(index, "delta", delta, piece)

    def called(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of the only chunk of a reply that was parsed when it was whole."""
        choice = self.choice(index, piece)
        message = choice.pop("message")
        delta = {key: message[key] for key in ("content", "tool_calls") if message.get(key)}
        for i, call in enumerate(delta.get("tool_calls", ())):
            call["index"] = i
        return {**choice, "delta": delta}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a whole reply."""
        message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
        calls = self.parser.calls(piece) if self.parser else None
        if calls is None:
            return self._choice(index, "message", message, piece)
        choice = self._choice(index, "message", {**message, **calls}, piece)
        return {**choice, "finish_reason": "tool_calls"}

    def _choice(self, index: int, name: str, message: Mapping[str, Any], piece: Piece) -> dict[str, Any]:
        content = [self._token(record) for record in piece.tokens] if self.logprobs else None
        logprobs = None if content is None else {"content": content, "refusal": None}
        return {"index": index, name: message, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _token(self, record: TokenRecord) -> dict[str, Any]:
        top = [self.texts.entry(token, logprob) for token, logprob in record.top]
        entry = {**self.texts.entry(record.id, record.logprob), "top_logprobs": top}
        return entry | ({"dual_head": _trace_entry(record, self.texts)} if record.trace else {})


class CompletionForm:
    """How /v1/completions answers."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"
    parser = None

    def __init__(self, texts: TokenTexts, logprobs: bool):
        self.texts, self.logprobs = texts, logprobs
        self._read: dict[int, tuple[Reply, int]] = {}  # each choice so far, and its characters

    def opening(self, index: int) -> dict[str, Any] | None:
        """Streams of texts open with text."""
        del index

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk."""
        return self.choice(index, piece)

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a whole reply."""
        logprobs = self._logprobs(index, piece.tokens) if self.logprobs else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprobs(self, index: int, records: Sequence[TokenRecord]) -> dict[str, Any]:
        reply, offset = self._read.get(index) or (self.texts.reply(), 0)
        offsets = []
        for record in records:
            offsets.append(offset)
            offset += len(reply.add((record,), finished=False).text)
        self._read[index] = reply, offset
        logprobs: dict[str, Any] = {
            "tokens": [self.texts.of(record.id) for record in records],
            "token_logprobs": [max(record.logprob, LOWEST) for record in records],
            "top_logprobs": [self._top(record) for record in records],
            "text_offset": offsets,
        }
        if any(record.trace for record in records):
            logprobs["dual_head"] = [_trace_entry(record, self.texts) if record.trace else None for record in records]
        return logprobs

    def _top(self, record: TokenRecord) -> dict[str, float]:
        """The likeliest tokens and the one that was chosen; of several with one text, the likeliest."""
        top: dict[str, float] = {}
        for token, logprob in (*record.top, (record.id, record.logprob)):
            top.setdefault(self.texts.of(token), max(logprob, LOWEST))
        return top


Form = ChatForm | CompletionForm


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _trace_entry(record: TokenRecord, texts: TokenTexts) -> dict[str, Any]:
    """What guidance did at a token: gates, KL(policy || base) in nats, the tokens whose probability rose most."""
    assert record.trace is not None
    promoted = [{"token": texts.of(token), "gain": gain} for token, gain in record.trace.promoted]
    return {"gates": record.trace.gates, "kl": record.trace.kl, "promoted": promoted}


class ToolParser:
    """Finds calls in a reply by the tokenizer's own response template; most tokenizers have none."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], tools: list[dict[str, Any]]):
        self._tokenizer, self._prompt, self._tools = tokenizer, list(prompt), tools

    def calls(self, piece: Piece) -> dict[str, Any] | None:
        """The content and the tool calls of a whole reply; None where it calls nothing, or is not written so."""
        ids = [record.id for record in piece.tokens]
        try:
            reply = self._tokenizer.parse_response(ids, prefix=self._prompt, tools=self._tools)
            calls = [_call(call["function"]) for call in reply.get("tool_calls") or ()]
        except Exception:  # a reply that is cut, or no JSON: the text is the reply then
            return None
        return {"content": reply.get("content") or None, "tool_calls": calls} if calls else None


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    call = {"name": function["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": call}
