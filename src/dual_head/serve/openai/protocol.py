"""From a body to the engine's requests; whatever cannot be done is refused by its name. Pure functions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.config import AlignedConfig
from dual_head.data import Prompt
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.model.generate import prompt_ids
from dual_head.serve.openai.alpha import Strength, read_alpha, text_alpha
from dual_head.serve.openai.bodies import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    JsonFormat,
    Message,
    RegexFormat,
    SchemaFormat,
    ScoreBody,
    TokenizeBody,
    Tool,
)
from dual_head.serve.openai.errors import Refused
from dual_head.serve.types import GenerationRequest, Grammar, Sampling

COMPLETION_TOKENS = 16  # what OpenAI's completions have where nothing says how many
SEEDS = 2**63
TOO_LONG = "context_length_exceeded"  # OpenAI's code
HOLDERS, DEEPEST = (dict, list), 64  # of values in values


@dataclass(frozen=True)
class Limits:
    """Tokens of prompt and reply together, ids of the vocabulary, choices of one request."""

    context: int
    vocabulary: int
    rows: int


# ---- prompts ---------------------------------------------------------------------------------------------


def encode_prompts_of(body: ChatBody | CompletionBody | TokenizeBody, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Token ids of every prompt of a body. Errors: an empty one, what the chat template refuses."""
    messages = getattr(body, "messages", None)
    param = "prompt" if messages is None else "messages"
    tools = _tools(body, tokenizer)
    prompt: Any = getattr(body, "prompt", None) if messages is None else conversation(messages, tokenizer)
    if messages is not None or isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    texts: list[Prompt] = [entry for entry in prompt if not _is_tokens(entry)]
    try:
        ids = iter(prompt_ids(texts, tokenizer, tools) if texts else [])
    except DualHeadError as error:
        raise Refused(str(error), param) from error
    return [entry if _is_tokens(entry) else next(ids) for entry in prompt]


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], int)


def conversation(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Messages as chat templates have them: content a text, and arguments of calls as they are, not as JSON."""
    conversation = []
    for i, message in enumerate(messages):
        if (message.tool_calls or message.role == "tool") and not tokenizer.chat_template:
            raise Refused("This model has no chat template, and no tools. Leave it out.", f"messages[{i}]")
        content = message.content if isinstance(message.content, str) else ""
        if isinstance(message.content, list):
            content = "".join(part.text for part in message.content)
        if message.content is None and not message.tool_calls:
            raise Refused("A message needs a content.", f"messages[{i}].content")
        turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": content}
        turn |= {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None}
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments, i)},
                }
                for call in message.tool_calls
            ]
        require_text(turn, f"messages[{i}]")
        conversation.append(turn)
    return conversation


def _arguments(text: str, i: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("The arguments of a call must be JSON.", f"messages[{i}].tool_calls") from error


def _tools(body: Any, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]] | None:
    """Tools as the chat template takes them; None where there are none, or none may be called."""
    tools: list[Tool] = getattr(body, "tools", None) or []
    if not tools or getattr(body, "tool_choice", None) == "none":
        return None
    if not tokenizer.chat_template or "tools" not in str(tokenizer.get_chat_template(tools=[{}])):
        raise Refused("The chat template of this model writes no tools. Leave them out.", "tools")
    schemas = [tool.model_dump(exclude_none=True) for tool in tools]
    require_text(schemas, "tools")
    return schemas


def require_text(value: Any, param: str) -> None:
    """Refuse half a character (a lone surrogate), which no tokenizer takes, and what is too deep for a template."""
    level = [value]
    for _ in range(DEEPEST):
        holders = (
            entry.values() if isinstance(entry, dict) else entry for entry in level if isinstance(entry, HOLDERS)
        )
        level = list(chain.from_iterable(holders))
    if level:
        raise Refused(f"It is nested more than {DEEPEST} deep. Make it flatter.", param)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Refused("It holds half a character (a lone surrogate).", param) from error


# ---- strengths -------------------------------------------------------------------------------------------


def request_alpha(
    body: GenerationBody | ScoreBody, models: Mapping[str, Mapping[str, Strength]], config: AlignedConfig
) -> tuple[str, dict[str, Strength]]:
    """The name of the model that answers, and the strength of each guide: the body's, or else that of the name.

    Errors: an unknown model, alpha in two places, see `read_alpha`.
    """
    model = require_model(body.model, models)
    value, param = body.alpha, "alpha"
    if body.vllm_xargs is not None and body.vllm_xargs.alpha is not None:
        if value is not None:
            raise Refused("alpha stands beside vllm_xargs and in it. Leave one out.", "vllm_xargs")
        value, param = body.vllm_xargs.alpha, "vllm_xargs.alpha"
        value = text_alpha(value, param) if isinstance(value, str) else value
    return model, dict(models[model]) if value is None else read_alpha(value, config, param)


def require_model(model: str | None, models: Mapping[str, Any]) -> str:
    """A name of /v1/models; the first where none is said. Errors: another name."""
    if model is None:
        return next(iter(models))
    if model not in models:
        words = f"There is no model '{model}'.{did_you_mean(model, models)}"
        raise Refused(words, "model", status=404, code="model_not_found")
    return model


# ---- requests --------------------------------------------------------------------------------------------


def generation_requests(
    body: ChatBody | CompletionBody, prompts: Sequence[Sequence[int]], alpha: Mapping[str, Strength], limits: Limits
) -> list[GenerationRequest]:
    """One request a choice: those of the first prompt, then those of the next. Errors: see `Limits`."""
    n = body.n or 1
    require_choices(body, len(prompts), limits)
    if body.stream_options is not None and not body.stream:
        raise Refused("stream_options needs stream: true.", "stream_options")
    sampling = _sampling(body, limits)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    requests = []
    for prompt in prompts:
        request = GenerationRequest(
            prompt_ids=prompt,
            max_tokens=_max_tokens(body, prompt, limits),
            alpha=alpha,
            sampling=sampling,
            stop=stop,
            ignore_eos=bool(body.ignore_eos),
        )
        requests += [replace(request, sampling=_with_seed(sampling, body.seed, choice)) for choice in range(n)]
    return requests


def require_choices(body: ChatBody | CompletionBody, prompts: int, limits: Limits) -> int:
    """How many rows a body needs. Errors: more than the server takes at once."""
    n = body.n or 1
    require_rows(n * prompts, "choices", "n" if n > 1 else "prompt", limits)
    return n * prompts


def require_rows(rows: int, words: str, param: str, limits: Limits) -> None:
    """Refuse more rows than the server takes at once."""
    if rows > limits.rows:
        raise Refused(
            f"{rows} {words} are more than the {limits.rows} that this server takes at once. Ask for fewer.", param
        )


def _with_seed(sampling: Sampling, seed: int | None, choice: int) -> Sampling:
    # Choices of one seed are different texts, the same ones each time.
    return sampling if seed is None else replace(sampling, seed=(seed + choice) % SEEDS)


def _max_tokens(body: ChatBody | CompletionBody, prompt: Sequence[int], limits: Limits) -> int:
    chat = isinstance(body, ChatBody)
    room = limits.context - len(prompt)
    if room < 1:
        raise Refused(
            f"The prompt has {len(prompt)} tokens and the context is {limits.context}. Shorten it.",
            "messages" if chat else "prompt",
            code=TOO_LONG,
        )
    param, most = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if most not in (None, body.max_completion_tokens):
            raise Refused("max_tokens and max_completion_tokens differ. Leave one out.", "max_tokens")
        param, most = "max_completion_tokens", body.max_completion_tokens
    if most is None:
        return room if chat else min(COMPLETION_TOKENS, room)
    if most > room:
        raise Refused(
            f"{param} must be at most {room}: the context is {limits.context} and the prompt has {len(prompt)} tokens.",
            param,
            code=TOO_LONG,
        )
    return most


def _sampling(body: ChatBody | CompletionBody, limits: Limits) -> Sampling:
    top_logprobs = (body.top_logprobs if isinstance(body, ChatBody) else body.logprobs) or 0
    if isinstance(body, ChatBody) and body.top_logprobs and not body.logprobs:
        raise Refused("top_logprobs needs logprobs: true.", "top_logprobs")
    return Sampling(
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=_logit_bias(body, limits),
        top_logprobs=min(top_logprobs, limits.vocabulary),
        trace=bool(body.trace),
        grammar=_grammar(body) if isinstance(body, ChatBody) else None,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _logit_bias(body: GenerationBody, limits: Limits) -> dict[int, float]:
    bias = {int(token): float(value) for token, value in (body.logit_bias or {}).items()}
    for token in bias:
        if token >= limits.vocabulary:
            raise Refused(f"There is no token {token}: ids are below {limits.vocabulary}.", "logit_bias")
    return bias


def require_tokens(prompts: Sequence[Sequence[int]], limits: Limits) -> None:
    """Refuse ids that are not of the vocabulary."""
    largest = max(map(max, prompts))
    if largest >= limits.vocabulary:
        raise Refused(f"There is no token {largest}: ids are below {limits.vocabulary}.", "prompt")


def _grammar(body: ChatBody) -> Grammar | None:
    match body.response_format:
        case JsonFormat():
            return Grammar("json")
        case SchemaFormat(json_schema=schema):
            require_text(schema.json_schema, "response_format")
            return Grammar("json_schema", json.dumps(schema.json_schema))
        case RegexFormat(regex=regex):
            require_text(regex, "response_format")
            return Grammar("regex", regex)
    return None
