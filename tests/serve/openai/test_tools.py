"""Tools: written by the chat template, and calls found in replies where the tokenizer says how they are written."""

import json

import pytest
from engines import character_tokenizer, tiny_model
from servers import CALLS, TOOLS_CHAT, ScriptedEngine, running_server

from dual_head.serve.types import Piece, TokenRecord

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = 'Wait!add{"n": 1}/'


class Speaking(ScriptedEngine):
    """Says one text, a character a piece."""

    def __init__(self, tokenizer, words: str):
        super().__init__()
        self.ids, self.words = tokenizer(words)["input_ids"], words

    async def stream(self, request):
        self.requests.append(request)
        for i, (token, character) in enumerate(zip(self.ids, self.words, strict=True)):
            yield Piece(character, (TokenRecord(token, -1.0),), "stop" if i == len(self.ids) - 1 else None)


@pytest.fixture
def tokenizer():
    characters = character_tokenizer()
    characters.chat_template = TOOLS_CHAT
    return characters


@pytest.fixture
def speaking(tokenizer):
    def run(words: str):
        engine = Speaking(tokenizer, words)
        return engine, running_server(tiny_model(), tokenizer, lambda _: engine)

    return run


def test_tools_and_earlier_calls_are_written_by_the_template(speaking, tokenizer):
    engine, server = speaking("ok")
    talk = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "add", "arguments": '{"n": 7}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "8"},
    ]
    with server as server:
        assert server.chat(messages=talk, tools=[TOOL]).status_code == 200
        assert server.chat(messages=talk, tools=[TOOL], tool_choice="none").status_code == 200
    prompts = [tokenizer.decode(request.prompt_ids) for request in engine.requests[1:]]
    assert prompts == ["#add;u:hi;a:!add7;t:8;a:", "u:hi;a:!add7;t:8;a:"]


def test_what_is_too_deep_for_a_template_is_refused(speaking):
    deep: dict = {}
    for _ in range(400):
        deep = {"a": [deep]}
    called = {"id": "1", "function": {"name": "add", "arguments": json.dumps(deep)}}
    with speaking("ok")[1] as server:
        tool = {"type": "function", "function": {"name": "add", "parameters": deep}}
        calling = [{"role": "assistant", "content": None, "tool_calls": [called]}]
        refusals = [
            server.chat(tools=[tool]),
            server.chat(messages=calling),
            server.chat(response_format=_format(deep)),
        ]
        assert server.chat(tools=[TOOL]).status_code == 200
    errors = [refusal.json()["error"] for refusal in refusals]
    assert [error["param"] for error in errors] == ["tools", "messages[0]", "response_format"]
    assert all("more than 64 deep" in error["message"] for error in errors)


def _format(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def test_without_a_response_template_the_reply_is_the_text(speaking):
    _, server = speaking(CALL)
    with server as server:
        (choice,) = server.chat(tools=[TOOL]).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


def test_calls_of_a_reply_are_found_by_the_response_template(speaking, tokenizer):
    tokenizer.response_template = CALLS
    _, server = speaking(CALL)
    with server as server, server.client() as client:
        ask = {"model": "toy", "messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}
        (choice,) = client.chat.completions.create(**ask).choices
        chunks = list(client.chat.completions.create(stream=True, **ask))
        plain = server.chat().json()["choices"][0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"n": 1})
    assert (choice.message.content, choice.finish_reason) == ("Wait", "tool_calls")
    (delta,) = [chunk.choices[0].delta for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert (delta.tool_calls[0].index, delta.tool_calls[0].function.name) == (0, "add")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert plain["message"]["content"] == CALL  # nobody asked for tools


def test_a_reply_that_calls_nothing_is_the_text(speaking, tokenizer):
    tokenizer.response_template = CALLS
    _, server = speaking("Hello!add{")
    with server as server:
        (choice,) = server.chat(tools=[TOOL]).json()["choices"]
        streamed = server.chat(tools=[TOOL], stream=True).text
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello!add{", "stop")
    assert '"content": "Hello!add{"' in streamed
