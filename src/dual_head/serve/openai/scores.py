"""/v1/score: a server's guides as a reward model of replies that are there, beside what the engine generates.

Replies are scored by the library's own pass, some at a time, in one thread: what generates goes on meanwhile.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from starlette.types import Receive
from transformers import PreTrainedTokenizerBase

from dual_head.data import Cut, Prompt
from dual_head.errors import DualHeadError
from dual_head.model.rewards import ReplyScore, Row, encode_rows, score_rows
from dual_head.serve.host import EngineHost
from dual_head.serve.openai import protocol
from dual_head.serve.openai.alpha import Strength
from dual_head.serve.openai.bodies import ScoreBody
from dual_head.serve.openai.errors import Refused
from dual_head.serve.openai.protocol import Limits
from dual_head.serve.openai.records import RequestRecord
from dual_head.serve.openai.replies import TokenTexts, usage
from dual_head.serve.openai.streams import unless_left

AT_ONCE = 8  # replies in a pass; between two passes a client may leave, and its time may be up


class Scorer:
    """Scores replies with the model of a host, one pass at a time, for as long as a request may last."""

    def __init__(self, host: EngineHost, tokenizer: PreTrainedTokenizerBase, seconds: float):
        self.host, self.tokenizer, self.seconds = host, tokenizer, seconds
        self._passes = ThreadPoolExecutor(1, "scores")

    async def __call__(
        self, rows: Sequence[Row], alpha: Mapping[str, Strength], record: RequestRecord, receive: Receive
    ) -> list[ReplyScore]:
        """Scores of all rows. Errors: time that is up (504), a client that left, logits of NaN or infinity (400)."""
        scores: list[ReplyScore] = []
        for start in range(0, len(rows), AT_ONCE):
            if record.elapsed() > self.seconds:
                record.reason = "timeout"
                raise Refused(f"The request had not ended after {self.seconds:g} s. Send fewer replies.", status=504)
            try:
                scores += await unless_left(receive, self._scored(rows[start : start + AT_ONCE], alpha))
            except DualHeadError as error:
                record.reason = "error"
                raise Refused(str(error)) from error
        return scores

    async def _scored(self, rows: Sequence[Row], alpha: Mapping[str, Strength]) -> list[ReplyScore]:
        work = self._passes.submit(score_rows, self.host.model, rows, alpha=dict(alpha))
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if not work.cancel():
                # A pass that has begun reads the guides to its end.
                await asyncio.gather(asyncio.wrap_future(work), return_exceptions=True)
            raise


def score_rows_of(body: ScoreBody, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> list[Row]:
    """Token ids of the prompt and of each reply. Errors: no prompt or two, a reply without tokens or too long."""
    if (body.prompt is None) == (body.messages is None):
        raise Refused("Give either a prompt or messages.", "prompt")
    if body.cut is not None and len(body.cut) != len(body.replies):
        raise Refused(f"There are {len(body.replies)} replies and {len(body.cut)} values of cut.", "cut")
    protocol.require_text(body.replies, "replies")
    prompt: Prompt = body.prompt or protocol.conversation(body.messages or (), tokenizer)
    cuts = body.cut or [False] * len(body.replies)
    replies = [Cut(text) if cut else text for text, cut in zip(body.replies, cuts, strict=True)]
    try:
        rows = encode_rows([prompt] * len(replies), replies, tokenizer, chat_template=False)
    except DualHeadError as error:
        raise Refused(str(error), "replies") from error
    for i, (ids, reply) in enumerate(rows):
        if len(ids) + len(reply) > limits.context:
            raise Refused(
                f"The prompt and this reply have {len(ids) + len(reply)} tokens and the context is {limits.context}. "
                "Shorten them.",
                f"replies[{i}]",
                code=protocol.TOO_LONG,
            )
    return rows


def score_entries(scores: Sequence[ReplyScore], texts: TokenTexts, *, tokens: bool) -> list[dict[str, Any]]:
    """One entry a reply, in the order of the body, in nats; with the tokens where they are asked for."""
    return [
        {"object": "score", "index": i, "reward": score.reward, "kl": score.kl}
        | ({"tokens": [_token_entry(token, texts) for token in score.tokens]} if tokens else {})
        for i, score in enumerate(scores)
    ]


def _token_entry(token: Any, texts: TokenTexts) -> dict[str, Any]:
    return {"token": texts.of(token.token_id), "reward": token.reward, **asdict(token)}


def score_usage(rows: Sequence[Row]) -> dict[str, int]:
    """Tokens read: of the prompt, once for each reply, and of the replies."""
    return usage(sum(len(prompt) + len(reply) for prompt, reply in rows), 0)
