"""Guided models in Inspect, the UK AI Security Institute's framework of evaluations, at any strength.

    inspect eval task.py --model dual_head/out/hh -M alpha=1.0

Inspect finds this module by the entry point `inspect_ai`. Samples that run at once are rows of one running batch, each
at a strength of its own where a task says `GenerateConfig(extra_body={"alpha": 0.5})`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo  # pyright: ignore[reportMissingImports]

from dual_head.errors import DualHeadError
from dual_head.evaluate.systems import SystemSpec, open_system
from dual_head.evaluate.systems.guided import GuidedSystem
from dual_head.evaluate.systems.specs import read_strength
from dual_head.model.generate import prompt_ids
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Grammar, Piece, Sampling

TOKENS = 512  # of a reply, where neither task nor command says
# What changes a reply and is read here; what Inspect itself acts on. Any other field that is set is refused.
READ = {
    *("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_seqs", "num_choices", "frequency_penalty"),
    *("presence_penalty", "logit_bias", "logprobs", "top_logprobs", "extra_body", "response_schema"),
}
INSPECTS = {
    *("max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections", "system_message"),
    *("cache", "batch", "max_tool_output", "internal_tools", "parallel_tool_calls", "cache_prompt"),
    *("fallback_models", "reasoning_history"),
}


class GuidedAPI(ModelAPI):
    """A folder of guides on its backbone behind Inspect's interface.

    alpha: as `-M alpha=1.0` or `-M alpha=helpful:0.5+harmless:1`; backbone: a copy of theirs in another place;
    max_rows: samples in one batch. Errors: no guides at the place, an unknown argument.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - as Inspect's own models have it
        *,
        alpha: float | str | None = None,
        backbone: str | None = None,
        max_rows: int = 16,
        device: str | None = None,
        dtype: str = "auto",
        other_precision: bool = False,
        trust_remote_code: bool = False,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        options: dict[str, Any] = {"device": device, "dtype": dtype, "backbone": backbone}
        options |= {"other_precision": other_precision, "trust_remote_code": trust_remote_code}
        system = open_system(SystemSpec("dual_head", model_name, read_strength(alpha)), **options)
        if not isinstance(system, GuidedSystem):
            raise DualHeadError(
                f"There are no guides at '{model_name}'. Inspect runs a plain model by hf/{model_name}."
            )
        self.alpha, self.rows, self.tokenizer = dict(system.alpha), max_rows, system.tokenizer
        self.engine = Engine(system.model, system.tokenizer, EngineSettings(max_rows=max_rows))
        self.engine.start()

    def close(self) -> None:
        """Stop generating."""
        self.engine.stop()

    def max_connections(self) -> int:
        """Samples at once: the rows of the batch."""
        return self.rows

    def max_tokens(self) -> int | None:
        """Of a reply, where nothing says."""
        return TOKENS

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        ids: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Reply to a conversation. Errors: tools, images, a field that is not supported."""
        del tool_choice
        if tools:
            raise DualHeadError("dual_head calls no tools in Inspect. Choose a task without tools.")
        _require_read(config)
        (ids,) = prompt_ids([[_message(message) for message in input]], self.tokenizer)
        room = self.engine.context_length - len(ids)
        if room < 1:
            reason = f"The prompt has {len(ids)} tokens and the context is {self.engine.context_length}."
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=reason)
        requests = [self._request(ids, config, choice, room) for choice in range(config.num_choices or 1)]
        pieces = await asyncio.gather(*(self._piece(request) for request in requests))
        written = sum(len(piece.tokens) for piece in pieces)
        usage = ModelUsage(input_tokens=len(ids), output_tokens=written, total_tokens=len(ids) + written)
        choices = [self._choice(piece, bool(config.logprobs)) for piece in pieces]
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)

    def _request(self, ids: Sequence[int], config: GenerateConfig, choice: int, room: int) -> GenerationRequest:
        alpha = (config.extra_body or {}).get("alpha")
        strength = self.alpha if alpha is None else alpha
        if not isinstance(strength, Mapping):
            strength = dict.fromkeys(self.alpha, float(strength))
        schema = config.response_schema and config.response_schema.json_schema.model_dump_json(exclude_none=True)
        grammar = Grammar("json_schema", schema) if schema else None
        return GenerationRequest(
            prompt_ids=list(ids),
            max_tokens=min(config.max_tokens or TOKENS, room),
            alpha=dict.fromkeys(self.alpha, 0.0) | dict(strength),
            sampling=Sampling(
                temperature=config.temperature or 0.0,
                top_p=1.0 if config.top_p is None else config.top_p,
                top_k=config.top_k or 0,
                frequency_penalty=config.frequency_penalty or 0.0,
                presence_penalty=config.presence_penalty or 0.0,
                logit_bias={int(token): float(bias) for token, bias in (config.logit_bias or {}).items()},
                seed=None if config.seed is None else config.seed + choice,
                top_logprobs=config.top_logprobs or 0,
                grammar=grammar,
            ),
            stop=tuple(config.stop_seqs or ()),
        )

    async def _piece(self, request: GenerationRequest) -> Piece:
        pieces = [piece async for piece in self.engine.stream(request)]
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        return Piece("".join(piece.text for piece in pieces), tokens, pieces[-1].finish_reason)

    def _choice(self, piece: Piece, logprobs: bool) -> ChatCompletionChoice:
        message = ChatMessageAssistant(content=piece.text, model=self.model_name, source="generate")
        reason = "max_tokens" if piece.finish_reason == "length" else "stop"
        content = [
            Logprob(
                token=self._text(token.id),
                logprob=token.logprob,
                top_logprobs=[TopLogprob(token=self._text(i), logprob=logprob) for i, logprob in token.top],
            )
            for token in piece.tokens
        ]
        return ChatCompletionChoice(
            message=message, stop_reason=reason, logprobs=Logprobs(content=content) if logprobs else None
        )

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


def _require_read(config: GenerateConfig) -> None:
    """Refuse a field that would change the reply, and is not read here."""
    settings = {name for name, value in config.model_dump(exclude_none=True).items() if value not in ({}, [])}
    if unread := sorted(settings - READ - INSPECTS):
        raise DualHeadError(f"dual_head does not take {unread[0]} in Inspect. Leave it out.")
    if unknown := sorted(set(config.extra_body or {}) - {"alpha"}):
        raise DualHeadError(f"extra_body of dual_head has alpha, and no {unknown[0]}. Leave it out.")


def _message(message: ChatMessage) -> dict[str, str]:
    """A message as chat templates have it. Errors: images, sounds and other parts that are no text."""
    parts = [] if isinstance(message.content, str) else message.content
    if other := [part.type for part in parts if part.type not in ("text", "reasoning")]:
        raise DualHeadError(f"A message holds {other[0]}, and dual_head reads text in Inspect. Choose another task.")
    return {"role": message.role, "content": message.text}


@modelapi(name="dual_head")
def dual_head() -> type[ModelAPI]:
    """The class of --model dual_head/GUIDES."""
    return GuidedAPI
