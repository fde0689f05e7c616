"""How the next tokens of a step are chosen, each row by the settings of its request, and recorded with it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dual_head.model import AlignedModel
from dual_head.model.generate import NOT_A_NUMBER
from dual_head.model.trace import TokenTrace, trace_tokens
from dual_head.ops.token_scores import map_tokens
from dual_head.serve import sampling
from dual_head.serve.grammar import Matcher, allowed_tokens
from dual_head.serve.paged import Row, Step
from dual_head.serve.types import GenerationRequest, TokenRecord


@dataclass(eq=False)
class RunningRequest(Row):
    """A request in the batch: what its next token depends on, and the tokens it has.

    deliver: called in the generation thread with (finished, error); edits: see `sampling.edits_of`.
    """

    request: GenerationRequest
    end_tokens: list[int]
    seed: int
    matcher: Matcher | None
    deliver: Callable[[tuple[bool, str | None]], None]
    loop: asyncio.AbstractEventLoop | None = None
    edits: sampling.LogitEdits | None = None
    records: list[TokenRecord] = field(default_factory=list)
    error: str | None = None


def choose_tokens(model: AlignedModel, step: Step) -> Tensor:
    """Scores [n, V] of a step's rows, whose largest are the next tokens; the tokens are recorded with their rows."""
    rows: Sequence[RunningRequest] = step.rows
    settings = [row.request.sampling for row in rows]
    logits = sampling.edited(step.logits, [row.edits for row in rows])
    constrained = [i for i, row in enumerate(rows) if row.matcher is not None]
    if constrained:
        logits = _constrained(logits, constrained, rows)
    scores = sampling.scores_of(logits, settings, [row.seed for row in rows], step.positions)
    tokens = scores.argmax(-1)
    chances = sampling.logprobs(step.logits, tokens).tolist()
    tops = sampling.top_logprobs(step.logits, [s.top_logprobs for s in settings])
    traced = [i for i, s in enumerate(settings) if s.trace]
    traces = dict(zip(traced, _traces(model, step, traced, tokens), strict=True)) if traced else {}
    for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
        row.records.append(TokenRecord(token, chances[i], tops[i], traces.get(i)))
        if row.edits is not None:
            row.edits.add(token)
        if row.matcher is not None and not row.matcher.consume_token(token):
            row.error = f"The grammar allows no further token: {row.matcher.get_error()}"
        if chances[i] != chances[i]:  # NaN
            row.error = NOT_A_NUMBER
    return scores


def _constrained(logits: Tensor, at: list[int], rows: Sequence[RunningRequest]) -> Tensor:
    allowed = allowed_tokens([rows[i].matcher for i in at], logits.shape[-1]).to(logits.device)
    index = torch.tensor(at, device=logits.device)
    return logits.index_copy(0, index, logits[index].masked_fill(~allowed, sampling.NEVER))


def _traces(model: AlignedModel, step: Step, at: list[int], tokens: Tensor) -> list[TokenTrace]:
    index = torch.tensor(at, device=tokens.device)
    hidden, states = map_tokens(lambda x: x[index], step.hidden, step.states)
    return trace_tokens(model, hidden, states, step.alpha[index], tokens[index])
