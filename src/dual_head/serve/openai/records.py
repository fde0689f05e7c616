"""What became of each request: its times and counts, for the metrics and for one line of JSON in the log.

No line holds a prompt or a reply, nor words of an error, which may quote them.
"""

import json
import logging
import logging.handlers
import queue
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dual_head.model.alpha import LinearDecay
from dual_head.serve.openai.alpha import Strength, alpha_json
from dual_head.serve.openai.metrics import Metrics
from dual_head.serve.types import Piece

LOG_PATHS = ("/v1/", "/tokenize")
CLIENT_LEFT = 499  # as nginx has it
BACKLOG = 10_000  # lines that wait for a slow disk or pipe before lines are lost


class RequestLog:
    """Writes lines to stderr from a thread of its own: a full disk, or a pipe that nobody reads, stops no request.

    Lines that cannot be written when they come are counted, and told of when one can be written again.
    """

    def __init__(self, unwritten: Counter) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(BACKLOG)
        self._listener = logging.handlers.QueueListener(self._queue, _Stderr(unwritten))
        self._unwritten = unwritten

    def start(self) -> None:
        """Begin to write."""
        self._listener.start()

    def stop(self) -> None:
        """Write what is left."""
        self._listener.stop()

    def write(self, line: Mapping[str, Any]) -> None:
        """Hand one line on; it is lost where too many wait already."""
        try:
            self._queue.put_nowait(logging.makeLogRecord({"msg": json.dumps(line)}))
        except queue.Full:
            self._unwritten.inc()


class _Stderr(logging.Handler):
    def __init__(self, unwritten: Counter) -> None:
        super().__init__()
        self._unwritten, self._told = unwritten, 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(record.msg, file=sys.stderr, flush=True)
            (metric,) = self._unwritten.collect()
            count = int(metric.samples[0].value)
            if count > self._told:
                print(json.dumps({"time": _now(), "unwritten_lines": count - self._told}), file=sys.stderr, flush=True)
                self._told = count
        except (OSError, ValueError):  # a full disk, a reader that has left, a stream that is closed
            self._unwritten.inc()


class RequestRecord:
    """One request, from its arrival to its end; reason: why it ended, where not because its choices had."""

    def __init__(self, metrics: Metrics, path: str):
        self.metrics, self.path, self.id = metrics, path, uuid.uuid4().hex
        self.model: str | None = None
        self.alpha: Mapping[str, Strength] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self.finish_reasons: list[str] = []
        self.reason: str | None = None
        self.started = time.perf_counter()
        self.first: float | None = None  # seconds to the first token
        self._last: dict[int, float] = {}  # when the last token of each choice came

    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def admitted(self, model: str, alpha: Mapping[str, Strength], prompts: Sequence[Sequence[int]]) -> None:
        """Note what is asked."""
        self.model, self.alpha, self.prompt_tokens = model, alpha, sum(map(len, prompts))
        self.metrics.prompt_tokens.inc(self.prompt_tokens)
        for guide, strength in alpha.items():
            start = strength.start if isinstance(strength, LinearDecay) else strength
            self.metrics.alpha.labels(guide).observe(start)

    def received(self, index: int, piece: Piece) -> None:
        """Note a piece of a choice."""
        now = self.elapsed()
        if piece.tokens:
            if self.first is None:
                self.first = now
                self.metrics.time_to_first_token.observe(self.first)
            if index in self._last:
                self.metrics.inter_token_latency.observe((now - self._last[index]) / len(piece.tokens))
            self._last[index] = now
            self.completion_tokens += len(piece.tokens)
            self.metrics.generation_tokens.inc(len(piece.tokens))
        if piece.finish_reason:
            self.finish_reasons.append(piece.finish_reason)

    def line(self, status: int) -> dict[str, Any]:
        """Count the request, which has ended, and tell of it."""
        seconds = self.elapsed()
        reasons = [self.reason] if self.reason else self.finish_reasons
        if self.model is not None:
            self.metrics.e2e_request_latency.observe(seconds)
            for reason in reasons:
                self.metrics.request_success.labels(reason).inc()
        elif status >= 400:
            self.metrics.request_refused.labels(str(status)).inc()
        return {
            "time": _now(),
            "id": self.id,
            "path": self.path,
            "status": status,
            "model": self.model,
            "alpha": alpha_json(self.alpha),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_seconds": None if self.first is None else round(self.first, 6),
            "seconds": round(seconds, 6),
            "finish_reasons": reasons,
        }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class RequestRecords:
    """Plain ASGI around every route that takes work: a record that the route fills, and its line at the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: RequestLog):
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and write the line; 499 is the status of a client that left before the answer."""
        if scope["type"] != "http" or not scope["path"].startswith(LOG_PATHS):
            return await self.app(scope, receive, send)
        record = RequestRecord(self.metrics, "".join(re.findall(r"[\w/.:-]", scope["path"]))[:200])
        scope.setdefault("state", {})["record"] = record
        status = CLIENT_LEFT

        async def watch_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch_status)
        finally:
            self.log.write(record.line(status))
