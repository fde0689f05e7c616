"""An OpenAI-compatible endpoint on 127.0.0.1 that says, or does, whatever a test wants."""

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


def completion(said, *, read=10, wrote=3, finish="stop", first_token=None):
    """What a well-behaved endpoint sends: status, headers, body. first_token: {token: log-probability}."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": said}}
    if first_token is not None:
        top = [{"token": token, "logprob": logp, "bytes": None} for token, logp in first_token.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return 200, {}, json.dumps(body)


def failure(status, message="no", **headers):
    """An error as OpenAI sends it; the client is told to try again after a millisecond."""
    headers = {"retry-after-ms": "1", **headers}
    return status, headers, json.dumps({"error": {"message": message, "type": "t", "code": None}})


class FakeEndpoint:
    """Answers request after request by `answer(number, body)`, and keeps what it was asked."""

    def __init__(self):
        self.answer = lambda number, body: completion("[[A]]")
        self.bodies, self.headers, self.at_once, self.most_at_once = [], [], 0, 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.bodies.append(body)
                    endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                    number = len(endpoint.bodies)
                    endpoint.at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                status, headers, text = endpoint.answer(number, body)
                with endpoint._lock:
                    endpoint.at_once -= 1
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # whoever asked has gone

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def asked(self):
        """The user's message of every request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def close(self):
        """Stop serving; nobody listens at the address afterwards."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def client(monkeypatch):
    """The client of endpoints, and no key in the environment but what a test puts there."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("openai", reason="the endpoint judge needs openai: pip install 'dual-head[judge]'")


@pytest.fixture
def endpoint(client):
    """A fake endpoint, and no key in the environment but what a test puts there."""
    fake = FakeEndpoint()
    fake.completion, fake.failure, fake.sleep = completion, failure, time.sleep
    yield fake
    fake.close()


class RawServer:
    """Sends to whoever connects the bytes that `answer()` yields, as slowly as it yields them."""

    def __init__(self):
        self.answer = lambda: iter(())
        self.requests, self.closing = 0, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with connection:
            try:
                heard = b""
                while b"\r\n\r\n" not in heard:
                    heard += connection.recv(65536)
                head, _, body = heard.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                while len(body) < length:
                    body += connection.recv(65536)
                self.requests += 1
                for part in self.answer():
                    connection.sendall(part)
                    if self.closing.is_set():
                        return
            except OSError:
                pass  # whoever asked has gone

    def drip(self, part, *, first=b""):
        """Yield `first`, and then `part` for ever, 50 times a second."""
        yield first
        while not self.closing.wait(0.02):
            yield part

    def close(self):
        """Stop every reply that is under way."""
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def raw_server(client):
    """A server that need not know HTTP."""
    server = RawServer()
    yield server
    server.close()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a module beside the metadata of a distribution that brings it: install(group, name, source)."""

    def install(group: str, name: str, source: str) -> None:
        site = tmp_path / f"site of {name}"
        info = site / f"acme_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dual_head.{group}]\n{name} = acme_{name}\n")
        (site / f"acme_{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, f"acme_{name}", raising=False)

    return install
