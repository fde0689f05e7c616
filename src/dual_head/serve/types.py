"""What goes into the engine and what comes out of it: requests, pieces of text, counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dual_head.errors import DualHeadError
from dual_head.model.alpha import LinearDecay
from dual_head.model.trace import TokenTrace

FinishReason = Literal["stop", "length"]


class EngineStopped(DualHeadError):
    """The engine no longer generates: it was stopped, or its thread died of what is the cause of this error."""


@dataclass(frozen=True)
class Grammar:
    """What the text must be: any JSON object ("json", without text), JSON of a schema, or a match of a regex."""

    kind: Literal["json", "json_schema", "regex"]
    text: str = ""


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen from its guided logits.

    temperature: 0 is greedy; top_p, min_p in [0, 1]; top_k: 0 keeps every token; seed: None draws one; penalties as
    transformers (repetition, over prompt and reply) and OpenAI (frequency, presence, over the reply) define them;
    logit_bias {token id: added}; top_logprobs: how many alternatives to tell at each token; trace: tell gates,
    divergence and promoted tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    trace: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue, at a strength per guide (0 where not named), by at most `max_tokens` tokens.

    stop: strings before which the text ends; ignore_eos: go on through end-of-sequence tokens.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    alpha: Mapping[str, float | LinearDecay] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class TokenRecord:
    """One generated token: its log-probability in nats under the guided logits, before penalties and temperature.

    top: the likeliest (id, logprob), most likely first; trace: what guidance did, where the request says so.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    trace: TokenTrace | None = None


@dataclass(frozen=True)
class Piece:
    """Text that became certain, the tokens that came with it, and why the request ended if it did."""

    text: str
    tokens: tuple[TokenRecord, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class EngineStats:
    """Requests in rows and in the queue, the used share of the pages, and counts of tokens since the start.

    kv_usage: pages kept for prefixes count as used; prefix_hit_tokens: of prompt_tokens, those read from pages.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
