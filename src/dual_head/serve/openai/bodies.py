"""Bodies of requests as OpenAI has them, and what is ours: alpha, trace and samplers that vLLM has too.

A field that is not here is refused by its name. Those of OpenAI's that change nothing here are taken with the value
that asks for nothing, since its clients send them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


def _integer(value: Any) -> Any:
    """16.0 as 16, which are one number in JSON; a list entry by entry."""
    if isinstance(value, list):
        return [_integer(entry) for entry in value] if any(type(entry) is float for entry in value) else value
    return int(value) if type(value) is float and value.is_integer() else value


def _boolean(value: Any) -> Any:
    """False and not 0, which are the same in Python."""
    if not isinstance(value, bool):
        raise ValueError("it should be a valid boolean")
    return value


Off = Annotated[Literal[False], BeforeValidator(_boolean)]
On = Annotated[Literal[True], BeforeValidator(_boolean)]
WHOLE = BeforeValidator(_integer)  # behind a Field: before it, the limits would be missing from the schema
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1), WHOLE]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1), WHOLE]

MOST_CHOICES, MOST_STOPS, MOST_TOP, MOST_BIASES = 16, 16, 20, 1024

_DECAY = {
    "type": "object",
    "properties": {"start": {"type": "number"}, "end": {"type": "number"}, "tokens": {"type": "integer", "minimum": 1}},
    "required": ["start", "end", "tokens"],
    "additionalProperties": False,
}
_BY_GUIDE = {"type": "object", "additionalProperties": {"anyOf": [{"type": "number"}, _DECAY]}}
# Read by `alpha.read_alpha`, which names the guide.
Alpha = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "number"}, _BY_GUIDE, {"type": "null"}]})]
AlphaText = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}, _BY_GUIDE, {"type": "null"}]})
]
GuideName = Annotated[Text, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]


def _with(**properties: Any) -> dict[str, Any]:
    """The schema of an object whose fields are so, and are there unless they may be null."""
    return {
        "properties": properties,
        "required": [name for name in properties if properties[name] not in (_NULL, _ZERO)],
    }


_NULL, _ZERO = {"type": "null"}, {"enum": [0, None]}
# Read by `protocol`, which says what is missing.
_CONTENT_OR_CALLS: Any = [
    _with(content={"type": ["string", "array"]}),
    _with(tool_calls={"type": "array", "minItems": 1}),
]
_STREAM_OPTIONS: Any = [_with(stream_options=_NULL), _with(stream={"const": True})]
_TOP_LOGPROBS: Any = [_with(top_logprobs=_ZERO), _with(logprobs={"const": True})]
_TEXT_OR_CHAT: Any = [
    _with(prompt={"type": "string"}, messages=_NULL),
    _with(messages={"type": "array"}, prompt=_NULL),
]


class Body(BaseModel):
    """A JSON object whose every field is known, and of its own type: no number is read from a string."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Body):
    """A part of a message's content; there are no images or sounds."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """What a model called, with its arguments as JSON."""

    name: Text
    arguments: str


class ToolCall(Body):
    """A call that an assistant's message holds."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One message; developer is another word for system."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _CONTENT_OR_CALLS})
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # What clients send back of a reply that they were given.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class Function(Body):
    """A function that the model may call, and the JSON schema of its parameters."""

    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Off | None = None


class Tool(Body):
    """A tool is a function."""

    type: Literal["function"]
    function: Function


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class Schema(Body):
    """A JSON schema under a name."""

    model_config = ConfigDict(extra="forbid", strict=True, serialize_by_alias=True)
    name: str
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


class RegexFormat(Body):
    """A text that a regular expression matches; ours."""

    type: Literal["regex"]
    regex: Text


class StreamOptions(Body):
    """What a stream ends with."""

    include_usage: bool | None = None
    include_obfuscation: Off | None = None


class Extra(Body):
    """Where vLLM's clients put fields that OpenAI does not have."""

    alpha: AlphaText = None


class GenerationBody(Body):
    """What both routes take."""

    model_config = ConfigDict(json_schema_extra={"allOf": [{"anyOf": _STREAM_OPTIONS}]})
    model: str | None = None
    alpha: Alpha = None
    vllm_xargs: Extra | None = None
    trace: bool | None = None
    max_tokens: Count | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31), WHOLE] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    repetition_penalty: Annotated[Finite, Field(ge=1e-3, le=10)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[Finite, Field(ge=-100, le=100)]],
            Field(max_length=MOST_BIASES, json_schema_extra={"additionalProperties": False}),
        ]
        | None
    ) = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Off | None = None
    service_tier: Literal["auto", "default"] | None = None


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    model_config = ConfigDict(json_schema_extra={"allOf": [{"anyOf": _STREAM_OPTIONS}, {"anyOf": _TOP_LOGPROBS}]})
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP), WHOLE] | None = None
    response_format: (
        Annotated[TextFormat | JsonFormat | SchemaFormat | RegexFormat, Field(discriminator="type")] | None
    ) = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: On | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    reasoning_effort: Literal["none"] | None = None
    audio: None = None
    functions: None = None
    function_call: None = None
    prediction: None = None
    web_search_options: None = None


class CompletionBody(GenerationBody):
    """The body of /v1/completions."""

    prompt: Text | Tokens | Annotated[list[Text | Tokens], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP), WHOLE] | None = None
    echo: Off | None = None
    best_of: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    suffix: None = None


class TokenizeBody(Body):
    """The body of /tokenize: a text as it is, or a conversation by the chat template."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _TEXT_OR_CHAT})
    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None


class ScoreBody(Body):
    """The body of /v1/score: a prompt and replies to it; cut: which of them stopped at a limit of tokens."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _TEXT_OR_CHAT})
    model: str | None = None
    alpha: Alpha = None
    vllm_xargs: Extra | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    replies: Annotated[list[Text], Field(min_length=1)]
    cut: list[bool] | None = None
    tokens: bool | None = None


class GuideBody(Body):
    """The body of POST /v1/guides: a guide of a folder or hub name, its name here and its default strength."""

    name: GuideName
    source: Text
    source_name: str | None = None
    alpha: Finite | None = None
