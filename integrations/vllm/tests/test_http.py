"""vLLM's own server, as `dual-head serve --backend vllm` starts it, asked by OpenAI's client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import GOLDEN
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

REQUESTS = json.loads((GOLDEN / "chat" / "requests.json").read_text())
OPTIONS = ["--dtype", "float32", "--max_rows", "8", "--context_length", "128", "--served_model_name", "toy"]
# After the --: what this engine is small by.
VLLM = [
    "--enforce-eager",
    "--kv-cache-memory-bytes",
    "64M",
    "--max-num-batched-tokens",
    "64",
    "--uvicorn-log-level=error",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server, and its log."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "dual_head", "serve", str(GOLDEN / "chat" / "guides"), "--backend", "vllm"]
    command += [*OPTIONS, "--port", str(port), "--", *VLLM]
    environment = {**os.environ, "DUAL_HEAD_API_KEY": "sesame", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        until_ready(process, url, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert "sesame" not in log.read_text()


def until_ready(process, url, log, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=f"{server}/v1", api_key="sesame", max_retries=0, timeout=120)


def ask(client, messages, model="toy", **body):
    options = {"temperature": 0, "max_tokens": 16}
    return client.chat.completions.create(
        model=model, messages=messages, **options, extra_body={"ignore_eos": True, **body}
    )


def text_of(client, messages, **options):
    return ask(client, messages, **options).choices[0].message.content.strip()


def streamed(client, request):
    options = {"temperature": 0, "max_tokens": 16, "stream": True}
    body = {"ignore_eos": True, "alpha": request["alpha"]}
    chunks = client.chat.completions.create(model="toy", messages=request["messages"], **options, extra_body=body)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_16_requests_at_once_get_the_librarys_texts_at_16_strengths(client):
    with ThreadPoolExecutor(16) as pool:
        whole = list(pool.map(lambda r: text_of(client, r["messages"], alpha=r["alpha"]), REQUESTS))
        parts = list(pool.map(lambda r: streamed(client, r), REQUESTS))
    expected = [request["text"].strip() for request in REQUESTS]
    assert whole == expected
    assert [text.strip() for text in parts] == expected
    assert len(set(expected)) > 5


def test_vllms_own_field_says_the_same(client):
    for request in REQUESTS[:4]:
        text = ",".join(f"{name}={value}" for name, value in request["alpha"].items())
        assert text_of(client, request["messages"], vllm_xargs={"alpha": text}) == request["text"].strip()


def test_completions_take_strengths_too(client):
    request = REQUESTS[1]
    reply = client.completions.create(
        model="toy",
        prompt=request["prompt"],
        temperature=0,
        max_tokens=16,
        extra_body={"ignore_eos": True, "alpha": request["alpha"]},
    )
    assert reply.choices[0].text.strip() == request["text"].strip()


def test_the_model_has_the_names_that_the_other_server_gives_it(client):
    assert [model.id for model in client.models.list()] == ["toy", "toy:base", "toy:calm", "toy:bold"]
    messages = REQUESTS[0]["messages"]
    assert text_of(client, messages, model="toy:base") == text_of(client, messages, alpha=0)
    assert text_of(client, messages, model="toy:bold") == text_of(client, messages, alpha={"bold": 1})
    assert text_of(client, messages) == text_of(client, messages, alpha=1)
    with pytest.raises(NotFoundError):
        text_of(client, messages, model="toy:other")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"alpha": {"nobody": 1}}, "No guide is named 'nobody'"),
        ({"alpha": "calm=1"}, "a mapping of guides to numbers"),
        ({"alpha": {"calm": "much"}}, "alpha is a number"),
        ({"alpha": 1, "vllm_xargs": {"alpha": 1}}, "Leave one out"),
        ({"vllm_xargs": {"alpha": "nobody=1"}}, "No guide is named 'nobody'"),
        ({"vllm_xargs": {"alpha": [1]}}, "alpha is a number"),
    ],
)
def test_strengths_that_cannot_be_get_400(client, body, words):
    with pytest.raises(BadRequestError, match=words) as caught:
        ask(client, REQUESTS[0]["messages"], **body)
    assert caught.value.status_code == 400


def test_who_has_no_key_is_not_answered(server):
    with pytest.raises(AuthenticationError):
        ask(OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0), REQUESTS[0]["messages"])
