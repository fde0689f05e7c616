"""Top-level alpha of a request, moved into vllm_xargs; without a server."""

import asyncio
import json

import pytest
from dual_head_vllm import middleware
from dual_head_vllm.middleware import Alpha
from engines import Golden

from dual_head.serve.vllm import GUIDES


@pytest.fixture
def post(monkeypatch):
    """Send a body through the middleware: what the server behind it gets, or the answer that it gives itself."""
    monkeypatch.setenv(GUIDES, str(Golden.of("hidden").guides))

    def run(body, path="/v1/chat/completions", chunks=1):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = -(-len(content) // chunks)
        messages = [
            {"type": "http.request", "body": content[i : i + size], "more_body": i + size < len(content)}
            for i in range(0, len(content), size)
        ]
        behind, sent = [], []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        async def app(scope, receive, send):
            message = await receive()
            while message.get("more_body"):
                behind.append(message["body"])
                message = await receive()
            length = dict(scope["headers"]).get(b"content-length")
            behind.append(message["body"])
            assert length is None or int(length) == sum(map(len, behind))
            await send({"type": "http.response.start", "status": 200, "headers": []})

        headers = [(b"content-length", str(len(content)).encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        asyncio.run(Alpha(app)(scope, receive, send))
        if behind:
            whole = b"".join(behind)
            run.header = dict(sent[0]["headers"]).get(b"dual-head-alpha")
            return whole if isinstance(body, bytes) else json.loads(whole)
        assert sent[0]["status"] in (400, 413)
        return json.loads(sent[1]["body"])["error"]

    return run


def alpha_of(body):
    return body["vllm_xargs"]["alpha"]


def test_a_reply_repeats_its_strengths_in_a_header(post):
    post({"model": "m", "alpha": 0.5})
    assert post.header == b"one=0.5,two=0.5,three=0.5"
    post({"model": "m"})
    assert post.header is None


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_number_is_for_every_guide_and_a_mapping_for_those_it_names(post, chunks):
    assert alpha_of(post({"model": "m", "alpha": 0.5}, chunks=chunks)) == "one=0.5,two=0.5,three=0.5"
    body = post({"model": "m", "alpha": {"two": -1}, "vllm_xargs": {"other": 3}}, chunks=chunks)
    assert body == {"model": "m", "vllm_xargs": {"other": 3, "alpha": "one=0.0,two=-1.0,three=0.0"}}


def test_names_of_the_model_stand_for_strengths_unless_a_request_says_some(post):
    assert alpha_of(post({"model": "m:two"})) == "one=0.0,two=1.0,three=0.0"
    assert alpha_of(post({"model": "m:base"})) == "one=0.0,two=0.0,three=0.0"
    assert alpha_of(post({"model": "m:two", "alpha": 0.25})) == "one=0.25,two=0.25,three=0.25"
    inside = {"model": "m:two", "vllm_xargs": {"alpha": "one=2"}}
    assert post(inside) == inside
    for plain in ({"model": "m"}, {"model": "m", "alpha": None}, {"model": "owner:other"}):
        assert "vllm_xargs" not in post(plain)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"alpha": {"nobody": 1}}, "No guide is named 'nobody'"),
        ({"alpha": "one=1"}, "a mapping of guides to numbers"),
        ({"alpha": [1]}, "alpha is a number"),
        ({"alpha": {"one": {"start": 1, "end": 0, "tokens": 3}}}, "decays"),
        ({"alpha": 1, "vllm_xargs": {"alpha": 1}}, "Leave one out"),
        (b'{"alpha": Infinity}', "NaN or infinity"),
    ],
)
def test_strengths_that_cannot_be_get_openais_error(post, body, words):
    error = post(body)
    error = json.loads(error) if isinstance(error, bytes) else error
    assert words in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "alpha")


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b'{"model": "m"}'])
def test_what_says_no_strength_goes_on_as_it_came(post, body):
    assert post(body or b" ") == (body or b" ")


def test_other_routes_are_left_alone(post):
    assert post({"alpha": {"nobody": 1}}, path="/tokenize") == {"alpha": {"nobody": 1}}


def test_a_body_without_an_end_is_not_kept(post, monkeypatch):
    monkeypatch.setattr(middleware, "LARGEST", 100)
    assert "larger than 100 bytes" in post({"model": "m" * 200}, chunks=4)["message"]
    assert post({"model": "m"}) == {"model": "m"}
