"""Servers on a free port: in this process over an engine or a script of what one does, or as a process."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

from dual_head import AlignedModel
from dual_head.serve.server import listen, open_api, web_server
from dual_head.serve.settings import ServerSettings
from dual_head.serve.types import EngineStats, EngineStopped, GenerationRequest, Piece, TokenRecord

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"

TOOLS_CHAT = (
    "{% if tools %}{% for t in tools %}#{{ t.function.name }};{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.name }}{{ c.function.arguments.n }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CALLS = {  # how a reply of that template calls
    "start_anchor": "a:",
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {},
        "tool_calls": {
            "open_pattern": r"!(?P<name>\w+)",
            "close": "/",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}


class ScriptedEngine:
    """Says "good0 good1 ..." a word every `pause` seconds, as an engine would; `die` ends it like a dead worker."""

    context_length = 64

    def __init__(self, pause: float = 0.0, text: Callable[[GenerationRequest], list[str]] | None = None):
        self.pause, self.text = pause, text
        self.alive = False
        self.requests: list[GenerationRequest] = []
        self.running = self.cancelled = 0

    def start(self) -> None:
        self.alive = True

    def stop(self, drain: float = 0.0) -> None:
        self.alive = False

    def die(self) -> None:
        self.alive = False

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, prompt_tokens=7, prefix_hit_tokens=3)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Piece]:
        self.requests.append(request)
        self.running += 1
        ended = False
        try:
            words = self.text(request) if self.text else [f"good{i % 8} " for i in range(request.max_tokens)]
            for i, word in enumerate(words):
                await asyncio.sleep(self.pause)
                if not self.alive:
                    ended = True
                    raise EngineStopped("The engine stopped generating.")
                last = i == len(words) - 1
                ended = last
                yield Piece(word, (TokenRecord(4 + i % 8, -0.5),), "length" if last else None)
        finally:
            self.running -= 1
            self.cancelled += not ended


class RunningServer:
    """A server that answers, and clients for it."""

    def __init__(self, api: Any, server: Any, url: str):
        self.api, self.server, self.url = api, server, url
        self.http = httpx2.Client(base_url=url, timeout=30)

    def client(self, key: str = "none") -> OpenAI:
        """OpenAI's own client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def chat(self, words: str = "ask1 ask2", *, key: str | None = None, **fields: Any) -> httpx2.Response:
        """Ask for a chat completion of 4 tokens, or what `fields` say."""
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": 4, **fields}
        return self.post("/v1/chat/completions", body, key=key)

    def post(self, path: str, body: Any, *, key: str | None = None) -> httpx2.Response:
        """Send JSON."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.http.post(path, json=body, headers=headers)

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"dual_head_{name} ")), 0.0)


@contextmanager
def running_server(
    model: AlignedModel, tokenizer: Any, build: Callable[[AlignedModel], Any], *,
    wait: bool = True, name: str = "toy", **settings: Any,
) -> Iterator[RunningServer]:  # fmt: skip
    """A server of a model of this name, ready unless `wait` is off."""
    options = ServerSettings(**{"port": 0, "drain": 5.0, **settings})
    listener = listen(options)
    api = open_api(model, build, tokenizer, name, options)
    server = web_server(api)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    running = RunningServer(api, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        if wait:
            until(lambda: running.http.get("/health").status_code == 200)
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join()
        listener.close()


class ServerProcess:
    """`dual-head serve` as a process of its own, whose log is a file."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path):
        self.process, self.url, self.log = process, url, log

    @property
    def port(self) -> int:
        """The port it listens at."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def lines(self) -> list[str]:
        """The lines of its log."""
        return self.log.read_text().splitlines()


@contextmanager
def server_process(guides: Path | str, log: Path, *options: object, port: int = 0) -> Iterator[ServerProcess]:
    """Serve a folder on one thread and offline, ready when the block begins; it is killed when the block ends."""
    command = [sys.executable, "-m", "dual_head", "serve", guides, "--port", port, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
    try:
        ready = process.stdout.readline() if process.stdout else ""
        assert ready.startswith("ready"), log.read_text()
        yield ServerProcess(process, ready.split()[1].rstrip("/"), log)
    finally:
        process.kill()
        process.communicate()


def request_bytes(path: str, **body: object) -> bytes:
    """A request as it goes over the line."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return f"{head}\r\n\r\n".encode() + content


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for what comes true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return value


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
