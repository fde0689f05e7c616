"""Two servers over HTTP, each a process of its own: `dual-head serve` and `transformers serve --continuous-batching`.

Both serve the same plain model, with pages and steps of the same sizes, and get the same greedy requests as streams.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import httpx2
import psutil
import torch
from measure import MB
from serve_loads import NEW, PAGE, PROMPT, REAL, ROWS, STEP, Run, Runs, sizes
from transformers import PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers import free_port

OURS, THEIRS = "dual-head serve", "transformers serve --continuous-batching"
WHOLE_WORD = re.compile("Ġ[a-z]{3,}")  # a token that is one word wherever it stands
LONGEST = 300.0  # seconds until a server answers


@dataclass
class Start:
    """Seconds from the start of a process until it says that it is well, and until its first token is here."""

    well: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)


class Server:
    """A process that answers /v1/completions; it is ended when the block ends."""

    def __init__(self, command: Sequence[object], port: int, extra: Mapping[str, Any], log: Path):
        self.url, self.extra, self.log = f"http://127.0.0.1:{port}", dict(extra), log
        self._command = [str(word) for word in command]
        self.texts: list[str] = []

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        self.process = psutil.Process(self._process.pid)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()

    def until_well(self) -> float:
        """Seconds from the start until /health says so."""
        while time.perf_counter() < self.started + LONGEST:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._command[0]} ended: {self.log.read_text()[-2000:]}")
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return time.perf_counter() - self.started
            time.sleep(0.05)
        raise TimeoutError(f"{self._command[0]} was not well after {LONGEST:.0f} s: {self.log.read_text()[-2000:]}")

    def run(self, prompts: Sequence[str]) -> Run:
        """Ask for all prompts at once; processor time is the server's."""
        cpu, wall = self._cpu(), time.perf_counter()
        replies = asyncio.run(self._all_at_once(prompts))
        run = Run(self._cpu() - cpu, time.perf_counter() - wall, NEW * len(prompts))
        for times, text in replies:
            run.add(times)
            self.texts.append(text)
        return run

    async def _all_at_once(self, prompts: Sequence[str]) -> list[tuple[list[float], str]]:
        async with httpx2.AsyncClient(base_url=self.url, timeout=LONGEST) as client:
            return await asyncio.gather(*[self._stream(client, prompt) for prompt in prompts])

    async def _stream(self, client: httpx2.AsyncClient, prompt: str) -> tuple[list[float], str]:
        """When the request was sent and when each part of its text came, and the text."""
        body = {"model": str(REAL), "prompt": prompt, "max_tokens": NEW, "temperature": 0, "stream": True, **self.extra}
        times, text, count = [time.perf_counter()], "", None
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                part = "".join(choice.get("text") or "" for choice in event.get("choices", ()))
                if part:
                    times.append(time.perf_counter())
                    text += part
                count = (event.get("usage") or {}).get("completion_tokens", count)
        if count != NEW:
            raise RuntimeError(f"{self._command[0]} gave {count} tokens instead of {NEW}: {text!r}")
        return times, text

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        return self.process.memory_info().rss / MB


def servers(folder: Path, most: int) -> dict[str, Callable[[], Server]]:
    """What makes each server, for loads of at most so many clients."""
    pages = sizes(most).num_blocks
    flags = ["-m", "dual_head", "serve", REAL, "--served_model_name", REAL, "--max_rows", ROWS, "--page_size", PAGE]
    flags += ["--num_blocks", pages, "--max_batch_tokens", STEP]
    peer = [REAL, "--continuous-batching", "--attn-implementation", "sdpa", "--device", "cpu", "--host", "127.0.0.1"]
    peer += ["--cb-block-size", PAGE, "--cb-num-blocks", pages, "--cb-max-batch-tokens", STEP]
    endless = json.dumps({"eos_token_id": -1, "do_sample": False})

    def make_guided() -> Server:
        port = free_port()
        usage = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        return Server([sys.executable, *flags, "--port", port], port, usage, folder / "ours.log")

    def make_peer() -> Server:
        port = free_port()
        script = Path(sys.executable).with_name("transformers")
        return Server(
            [script, "serve", *peer, "--port", port], port, {"generation_config": endless}, folder / "theirs.log"
        )

    return {OURS: make_guided, THEIRS: make_peer}


def measure(
    tokenizer: PreTrainedTokenizerBase, loads: Sequence[int], rounds: int, starts: int
) -> tuple[dict[str, Start], dict[int, Runs], dict[str, float], str]:
    """Starts, runs of every load and megabytes of each server, and how many texts were the same."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        makers = servers(Path(folder), max(loads))
        start, running = {name: Start() for name in makers}, {}
        for i in range(starts):
            for name, make in makers.items():
                with ExitStack() as brief:  # all but the last are ended at once
                    server = (stack if i == starts - 1 else brief).enter_context(make())
                    start[name].well.append(server.until_well())
                    sent = time.perf_counter()
                    run = server.run(texts(tokenizer, 1, -i - 1))
                    start[name].first_token.append(sent - server.started + run.first[0])
                    running[name] = server
        runs: dict[int, Runs] = {load: {name: [] for name in running} for load in loads}
        for server in running.values():
            server.texts.clear()
        for load in loads:
            for round_ in range(rounds):
                for name in list(running)[:: -1 if round_ % 2 else 1]:
                    runs[load][name].append(running[name].run(texts(tokenizer, load, round_)))
        memory = {name: server.megabytes for name, server in running.items()}
        same = [a == b for a, b in zip(*(server.texts for server in running.values()), strict=True)]
    return start, runs, memory, f"{sum(same)} of {len(same)} texts were the same from both"


def texts(tokenizer: PreTrainedTokenizerBase, load: int, round_: int) -> list[str]:
    """Texts of PROMPT words, a token each, that no two rounds have in common."""
    words = [token for name, token in sorted(tokenizer.get_vocab().items()) if WHOLE_WORD.fullmatch(name)]
    generator = torch.Generator().manual_seed(1000 * load + round_)
    picks = torch.randint(len(words), (load, PROMPT), generator=generator).tolist()
    return [str(tokenizer.decode([words[i] for i in row])) for row in picks]
