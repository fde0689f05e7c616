"""Clients that leave in crowds, clients that hardly read, and a server that is killed: what the others see of it."""

import asyncio
import json
import os
import resource
import socket
import threading
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from engines import alphas, generated, prompts, small_engine, tiny_model
from files import write_guides
from servers import ScriptedEngine, request_bytes, running_server, server_process, until

from dual_head import HiddenConfig
from dual_head.serve.openai import streams

CLIENTS = 1000


# ---- a crowd that leaves -----------------------------------------------------------------------------------


@pytest.fixture
def many_files():
    """Room for a connection and its other end for every client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * CLIENTS:
        pytest.skip("this system lets a process have too few connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * CLIENTS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def free_pages(engine) -> float:
    """The share of the pages that no request holds; those kept for prefixes are given up."""
    cache = engine._batch._processor.cache
    cache.evict_cached_blocks()
    return cache.compute_free_capacity()


@pytest.mark.slow
def test_a_thousand_clients_that_leave_at_once_leave_every_row_and_page_free(tokenizer, many_files):
    model = tiny_model("hidden", "gate")

    async def come_and_leave(port: int, i: int, everyone: asyncio.Barrier) -> None:
        """Connect when all do; leave at once, in the middle of the body, when it is sent, or at the first byte."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await everyone.wait()
        whole = request_bytes(
            "/v1/completions",
            prompt=prompts()[i % 8],
            max_tokens=60,
            stream=i % 2 == 0,
            ignore_eos=True,
            alpha=alphas(("hidden", "gate"), i % 8),
        )
        writer.write(whole[: (0, len(whole) // 2, None, None)[i // 2 % 4]])
        if i // 2 % 4 == 3:
            await reader.read(1)
        writer.transport.abort()

    async def crowd(port: int) -> None:
        everyone = asyncio.Barrier(CLIENTS)
        await asyncio.gather(*[come_and_leave(port, i, everyone) for i in range(CLIENTS)])

    with running_server(model, tokenizer, small_engine, max_queue=CLIENTS) as server:
        asyncio.run(crowd(server.http.base_url.port))
        engine = server.api.host.engine
        until(lambda: (stats := engine.stats()).running == stats.waiting == server.api.host.admitted == 0, 60)
        until(lambda: free_pages(engine) == 1.0)
        assert engine._running == {}
        alpha = alphas(("hidden", "gate"), 1)
        body = {"prompt": prompts()[1], "max_tokens": 12, "temperature": 0, "alpha": alpha}
        text = server.post("/v1/completions", body).json()["choices"][0]["text"]
    assert text == tokenizer.decode(generated(model, prompts()[1], alpha, 12), skip_special_tokens=True)


# ---- slow readers ------------------------------------------------------------------------------------------

PIECE = 200_000  # characters


def test_a_slow_reader_delays_nobody_and_its_reply_is_written_as_it_is_read(tokenizer, monkeypatch):
    words, written = [chr(97 + i % 26) * PIECE for i in range(60)], []
    event = streams._event
    monkeypatch.setattr(streams, "_event", lambda content: written.append(1) or event(content))
    engine = ScriptedEngine(text=lambda request: words if request.max_tokens == 60 else ["quick"])
    with running_server(tiny_model(), tokenizer, lambda _: engine) as server, socket.socket() as slow:
        slow.settimeout(20)
        slow.connect(("127.0.0.1", server.http.base_url.port))
        slow.sendall(request_bytes("/v1/completions", prompt="a", max_tokens=60, stream=True))
        received = slow.recv(1000)
        until(lambda: len(engine.requests) > 1 and engine.running == 0)  # generated to its end, and the row is free
        for _ in range(5):
            assert server.chat(max_tokens=1).json()["choices"][0]["message"]["content"] == "quick"
            received += slow.recv(1000)
        waiting = len(written)
        assert waiting < 50  # what the system keeps of a connection, at most some MB, and not the whole reply
        while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            received += slow.recv(2**20)
        assert len(written) > waiting
        until(lambda: server.api.host.admitted == 0)
    events = [line for line in received.split(b"\r\n") if line.startswith(b"data: {")]
    assert [json.loads(event[6:])["choices"][0]["text"] for event in events] == words


# ---- a server that is killed -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_server_leaves_nothing_behind_and_another_answers_at_its_port(backbone_folder, tmp_path, monkeypatch):
    guides = write_guides(tmp_path / "guides", backbone_folder, {"kind": HiddenConfig()})
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    body = {"prompt": "ask1 ask2", "max_tokens": 50, "temperature": 0, "alpha": 1.0, "ignore_eos": True}

    def left_behind() -> list[Path]:
        return sorted(path for folder in (guides, tmp_path / "tmp", Path("/dev/shm")) for path in folder.rglob("*"))

    def text(url: str) -> str:
        return httpx2.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]

    before = left_behind()
    with server_process(guides, tmp_path / "log", "--num_blocks", 64) as first:
        reply = text(first.url)
        children = psutil.Process(first.process.pid).children(recursive=True)
        errors = []

        def read() -> None:
            try:
                with httpx2.stream(
                    "POST", f"{first.url}/v1/completions", json={**body, "n": 8, "stream": True}
                ) as stream:
                    for _ in stream.iter_lines():
                        reading.set()
                        time.sleep(0.05)
            except httpx2.TransportError as error:
                errors.append(error)

        reading, client = threading.Event(), threading.Thread(target=read)
        client.start()
        assert reading.wait(60)
        first.process.kill()
        first.process.wait()
        client.join(60)
        assert [isinstance(error, (httpx2.RemoteProtocolError, httpx2.ReadError)) for error in errors] == [True]
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{first.url}/health")
        assert not [child for child in children if child.is_running()]
        assert left_behind() == before
        with server_process(guides, tmp_path / "log", "--num_blocks", 64, port=first.port) as second:
            assert second.url == first.url
            assert text(second.url) == reply
    assert os.listdir(tmp_path / "tmp") == []  # noqa: PTH208
