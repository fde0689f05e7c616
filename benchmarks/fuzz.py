"""Valid, broken and senseless requests to every route of `dual-head serve`, answered without a crash, a hang or a 5xx.

    python benchmarks/fuzz.py --requests 100000 --seed 0     # make fuzz-serve

Bodies are drawn by schemathesis from the schema that the server itself publishes: some that it allows, some that it
forbids, some with this server's names of models and guides. Each is sent as it is, and with a value, a byte or a header
broken. Two servers take half of the requests each: the toy backbone, and a model whose tokenizer knows bytes and tools.
"""

import argparse
import copy
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any
from urllib.parse import quote

import schemathesis
from fuzz_bodies import SENSELESS, broken, broken_bytes
from hypothesis import HealthCheck, Phase, given, seed, settings
from jsonschema import Draft202012Validator
from measure import machine
from schemathesis.core import NOT_SET
from schemathesis.generation import GenerationMode

from dual_head.demo import TOY_BACKBONE
from dual_head.guides.hidden import HiddenConfig
from dual_head.model.pretrained import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from engines import character_tokenizer
from files import write_guides
from models import tiny_lm
from servers import CALLS, TOOLS_CHAT, ServerProcess, server_process

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
KEY, ADMIN_KEY = "client-key", "admin-key"
SIZES = ("--context_length", 48, "--num_blocks", 64, "--page_size", 8, "--max_body_bytes", 200_000)
CLIENTS, TOGETHER = 16, 500  # connections at a time; requests between two looks at the server
LONGEST = 60.0  # seconds for an answer; one that takes longer hangs
DRAWN = 24  # bodies of one route drawn at a time
GATED = HiddenConfig(rank=4, gate="attention", num_heads=2, head_dim=8)
GUIDES = {"helpful": HiddenConfig(rank=4), "harmless": GATED}
GREEDY = {"prompt": "how do i bake bread ?", "max_tokens": 8, "temperature": 0, "alpha": 1.0}
HYPOTHESIS: Any = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
KINDS = ("schema", "value", "byte", "header", "path")
USES = {"schema": 1, "value": 19, "byte": 9, "header": 4}  # how often a body is sent
CONTENT_TYPES = ["", "text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=x"]


@dataclass(frozen=True)
class Call:
    """One request; kind: what is wrong with it."""

    kind: str
    method: str
    route: str
    path: str
    body: bytes | None
    headers: dict[str, str]


@dataclass
class Tally:
    """What came back: statuses by route and by kind, the longest wait, and whatever must not be."""

    by_route: Counter[tuple[str, int]] = field(default_factory=Counter)
    by_kind: Counter[tuple[str, int]] = field(default_factory=Counter)
    longest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, call: Call, status: int, seconds: float, fault: str | None) -> None:
        """Count one answer."""
        if fault:
            self.faults.append(f"{fault}: {call}"[:4000])
            print(self.faults[-1], file=sys.stderr, flush=True)
        self.by_route[call.route, status] += 1
        self.by_kind[call.kind, status] += 1
        self.longest = max(self.longest, seconds)

    def statuses(self) -> dict[str, int]:
        """Answers by status."""
        total: Counter[int] = Counter()
        for (_, status), count in self.by_route.items():
            total[status] += count
        return {str(status): total[status] for status in sorted(total)}


def main() -> int:
    """Send, count, and end with 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the counts")
    args = parser.parse_args()
    sys.setrecursionlimit(20_000)  # bodies are deep on purpose
    tally, started = Tally(), time.perf_counter()
    with TemporaryDirectory() as folder:
        for i, guides in enumerate((toy_guides(Path(folder, "toy")), byte_guides(Path(folder, "bytes")))):
            keys = ("--api_key", KEY, "--admin_key", ADMIN_KEY)
            with server_process(guides, Path(folder, f"{i}.log"), *SIZES, *keys) as server:
                fuzz = Fuzz(server, guides, tally, 2 * args.seed + i, tools=bool(i))
                with suppress(KeyboardInterrupt):  # what was sent until then is counted
                    fuzz.run((args.requests + i) // 2)
                fuzz.look()
    counts = {
        "command": f"python benchmarks/fuzz.py --requests {args.requests} --seed {args.seed}",
        "machine": machine().as_dict(),
        "seconds": round(time.perf_counter() - started),
        "longest_answer_seconds": round(tally.longest, 2),
        "requests": sum(tally.by_route.values()),
        "statuses": tally.statuses(),
        "routes": _nested(tally.by_route),
        "kinds": _nested(tally.by_kind),
        "faults": tally.faults,
    }
    print(json.dumps(counts, indent=1))
    args.output.write_text(json.dumps(counts, indent=1) + "\n")
    return 1 if tally.faults else 0


def toy_guides(folder: Path) -> Path:
    """Two guides of random weights on the toy backbone."""
    return write_guides(folder, TOY_BACKBONE, GUIDES, tokenizer=load_tokenizer(str(TOY_BACKBONE)), spread=0.1)


def byte_guides(folder: Path) -> Path:
    """The same on a random model whose tokenizer can keep to a grammar, and writes and reads calls of tools."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template, tokenizer.response_template = TOOLS_CHAT, CALLS
    tiny_lm("llama").save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    return write_guides(folder, folder / "backbone", GUIDES, tokenizer=tokenizer)


def _nested(counts: Counter[tuple[str, int]]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for (name, status), count in sorted(counts.items()):
        rows.setdefault(name, {})[str(status)] = count
    return rows


class Fuzz:
    """Sends requests to one server over several connections, and looks at every answer.

    tools: whether its tokenizer knows tools and grammars.
    """

    def __init__(self, server: ServerProcess, guides: Path, tally: Tally, number: int, *, tools: bool):
        self.server, self.guides, self.tally, self.tools = server, guides, tally, tools
        self.random = random.Random(number)
        self.threads = local()
        self.connections: list[http.client.HTTPConnection] = []
        self.schemas = json.loads(self.ask("GET", "/openapi.json")[1])
        self.models = [card["id"] for card in json.loads(self.ask("GET", "/v1/models")[1])["data"]]
        components, paths = {"components": self.schemas["components"]}, self.schemas["paths"]
        self._validators = {
            path: Draft202012Validator({**_body_schema(self.schemas, path), **components})
            for path in paths
            if "post" in paths[path]
        }
        self.calls = self._calls(number)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, str]:
        """Send one request, with the right key where no other is said: status, body and type of the answer."""
        if (connection := getattr(self.threads, "connection", None)) is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=LONGEST)
            self.threads.connection = connection
            self.connections.append(connection)
        key = ADMIN_KEY if path.startswith("/v1/guides") else KEY
        connection.request(method, path, body, {"Authorization": f"Bearer {key}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("content-type", "")

    def hang_up(self) -> None:
        """End all connections; those that rest are ended by the server."""
        for connection in self.connections:
            connection.close()
        self.threads, self.connections = local(), []

    def run(self, requests: int) -> None:
        """Send so many requests."""
        self.reference = self._reference()
        for done in range(0, requests, TOGETHER):
            calls = list(islice(self.calls, min(TOGETHER, requests - done)))
            self.hang_up()
            with ThreadPoolExecutor(CLIENTS) as pool:
                for call, answer in zip(calls, pool.map(self._send, calls), strict=True):
                    self.tally.add(call, *answer)
            if self.server.process.poll() is not None:
                return
            print(f"{done + len(calls)} of {requests}: {self.tally.statuses()}", file=sys.stderr, flush=True)

    def look(self) -> None:
        """Look at the server afterwards: it lives, answers as before, has nothing left to do and logged no error."""
        if (code := self.server.process.poll()) is not None:
            self.tally.faults.append(f"the server ended with {code}")
            return
        self.hang_up()
        if self._reference() != self.reference:
            self.tally.faults.append("afterwards a greedy request has another answer")
        metrics = self.ask("GET", "/metrics")[1].decode()
        for name in ("num_requests_running", "num_requests_waiting", "engine_restarts_total"):
            if f"dual_head_{name} 0.0\n" not in metrics:
                self.tally.faults.append(f"afterwards {name} is not 0")
        self.hang_up()
        self.tally.faults += [f"in the log: {line}" for line in self.server.lines if not line.startswith("{")][:20]

    def _reference(self) -> Any:
        headers = {"Content-Type": "application/json"}
        status, answer, _ = self.ask("POST", "/v1/completions", json.dumps(GREEDY).encode(), **headers)
        assert status == 200, answer
        return json.loads(answer)["choices"]

    def _send(self, call: Call) -> tuple[int, float, str | None]:
        """Send a request: the status of its answer, 0 where none came, seconds, and what is wrong."""
        started = time.perf_counter()
        try:
            status, answer, kind = self.ask(call.method, call.path, call.body, **call.headers)
            fault = self._fault(call, status, answer, kind)
            if status == 200 and (call.method, call.path) == ("POST", "/v1/guides"):  # out again, or they pile up
                name = json.loads(call.body or b"")["name"]
                detached = self.ask("DELETE", f"/v1/guides/{quote(name)}")
                fault = fault or (None if detached[0] == 200 else f"it cannot be detached: {detached[1]!r}")
        except (OSError, http.client.HTTPException) as error:
            self.threads.connection.close()
            status, fault = 0, f"no answer: {error!r}"
        return status, time.perf_counter() - started, fault

    def _fault(self, call: Call, status: int, answer: bytes, kind: str) -> str | None:
        """What is wrong with an answer."""
        if status >= 500:
            return f"{status} {answer[:300]!r}"
        if kind.startswith("text/event-stream"):
            return _fault_of_events(answer)
        if call.method == "HEAD":
            return None
        if "json" not in kind:
            return None if status == 200 or kind.startswith("text/plain") else f"{status} of type '{kind}'"
        try:
            content = json.loads(answer, parse_constant=_no_constant)
        except ValueError as error:
            return f"{status} with no JSON ({error}): {answer[:300]!r}"
        if status >= 400:
            error = content.get("error", {})
            whole = error.get("message") and error.get("type") and set(error) == {"message", "type", "param", "code"}
            return None if whole else f"{status} in another form: {answer[:300]!r}"
        if call.method == "POST" and not self._valid(call):
            return "taken against the schema"
        return None

    def _valid(self, call: Call) -> bool:
        try:
            return self._validators[call.route].is_valid(json.loads(call.body or b""))
        except (ValueError, RecursionError):
            return False

    # ---- what is sent ----------------------------------------------------------------------------------

    def _calls(self, number: int) -> Iterator[Call]:
        """Requests without end, of every route and kind."""
        posts = list(self._validators)
        schema, narrow = (schemathesis.openapi.from_dict(raw) for raw in (self.schemas, self._with_own_names()))
        allowed, forbidden = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
        sources = ((schema, allowed), (schema, forbidden), (narrow, allowed), (narrow, allowed))
        pools: dict[str, list[Any]] = {path: [] for path in posts}
        draws = 0
        while True:
            # Attaching a guide begins a new batch: one in fifty.
            path = self.random.choices(posts, [1 if path == "/v1/guides" else 16 for path in posts])[0]
            yield self._other(posts)
            if not pools[path]:
                for operations, mode in sources:
                    draws += 1
                    pools[path] += _drawn(
                        operations[path]["POST"].as_strategy(generation_mode=mode), 1000 * number + draws
                    )
                self.random.shuffle(pools[path])
            # Drawing takes longer than anything else: a body is sent as it is, and broken in several ways.
            body = pools[path].pop()
            for kind in KINDS[:4]:
                for _ in range(USES[kind]):
                    yield self._call(kind, path, body)

    def _call(self, kind: str, path: str, body: Any) -> Call:
        headers = {"Content-Type": "application/json"}
        if kind == "value":
            body = broken(body, self.random)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if kind == "byte":
            content = broken_bytes(content, self.random)
        if kind == "header":
            headers |= self._broken_header()
        return Call(kind, "POST", path, path, content, headers)

    def _broken_header(self) -> dict[str, str]:
        keys = [
            "",
            "Bearer",
            "Bearer wrong",
            f"bearer {KEY}",
            f"Basic {KEY}",
            f"Bearer {KEY} ",
            "Bearer \xe9",
            "x" * 5000,
        ]
        return self.random.choice(
            [
                {"Content-Type": self.random.choice(CONTENT_TYPES)},
                {"Authorization": self.random.choice(keys)},
                {"Content-Encoding": "gzip"},
                {"Accept": "image/png"},
                {"Host": "example.org"},
                {"X-Long": "a" * 8000},
                {"Origin": "null"},
            ]
        )

    def _other(self, posts: list[str]) -> Call:
        """A request without a body: other routes, other methods, paths that are none."""
        guides = ["helpful", "nobody", "", "%00", "a/b", "%ff", "x" * 2000]
        texts = [*self.models, *(quote(text, errors="replace") for text in SENSELESS if isinstance(text, str))]
        paths = [
            *["/health", "/metrics", "/v1/models", "/openapi.json", "/", "/playground/page.js", "/docs", "//", "/..;/"],
            *["/playground/../../../etc/passwd", "/playground/%2e%2e/page.py", "/v1/embeddings", "*", *posts],
            f"/v1/models/{self.random.choice(texts)}"[:4000],
            f"/v1/guides/{self.random.choice(guides)}",
        ]
        methods = ["GET", "GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"]
        path, method = self.random.choice(paths), self.random.choice(methods)
        if method == "DELETE" and path.endswith("/helpful"):
            path = "/v1/guides/nobody"  # the guides of the reference stay
        route = next((p for p in ("/v1/models/", "/v1/guides/", "/playground/") if path.startswith(p)), path)
        return Call("path", method, route, path, None, {})

    def _with_own_names(self) -> dict[str, Any]:
        """The schemas of a client that knows this server: its models, guides and tokens, and asks for little."""
        schemas = copy.deepcopy(self.schemas)
        number = {"type": "number", "minimum": -4, "maximum": 4}
        by_guide = {"type": "object", "properties": dict.fromkeys(GUIDES, number), "additionalProperties": False}
        bias = {"type": "object", "properties": {"5": number, "40": number}, "additionalProperties": False}
        null, text = {"type": "null"}, {"type": "string", "pattern": "^[a-z ]{1,12}$"}
        known: dict[str, Any] = {
            "model": {"enum": [None, *self.models]},
            "alpha": {"anyOf": [number, by_guide, null]},
            "vllm_xargs": null,
            "max_tokens": {"enum": [1, 2, 3]},
            "max_completion_tokens": null,
            "n": {"enum": [None, 1, 2]},
            "logit_bias": {"anyOf": [bias, null]},
            "content": text,
            "arguments": {"enum": ['{"n": 1}', "{}"]},
            "schema": {"enum": [{"type": "object"}, {"enum": ["ab", 7]}]},
            "regex": {"enum": ["[a-c]{1,3}", "a"]},
            "source": {"enum": [str(self.guides)]},
            "source_name": {"enum": ["helpful", "nobody"]},
        }
        if not self.tools:
            known |= {"tools": null, "tool_calls": null, "response_format": null}
        for name, schema in schemas["components"]["schemas"].items():
            properties = schema.get("properties", {})
            properties.update({name: known[name] for name in properties.keys() & known.keys()})
            if "max_tokens" in properties:
                schema["required"] = [*schema["required"], "max_tokens"]
            if name == "GuideBody":
                schema["required"] = [*schema["required"], "source_name"]
            if name == "CompletionBody":
                properties["prompt"] = {"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": 2}]}
            if name == "TokenizeBody":
                properties["prompt"] = text
                schema.pop("oneOf")
        return schemas


def _fault_of_events(stream: bytes) -> str | None:
    """A stream ends with [DONE], and any error in it is the request's."""
    *events, done, _ = stream.decode().split("\n\n")
    contents = [json.loads(event.removeprefix("data: "), parse_constant=_no_constant) for event in events]
    errors = [content["error"] for content in contents if "error" in content]
    if done != "data: [DONE]" or any(error["type"] != "invalid_request_error" for error in errors):
        return f"a stream with {errors} and {done!r} at its end"
    return None


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _body_schema(schemas: dict[str, Any], path: str) -> dict[str, Any]:
    return schemas["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def _drawn(cases: Any, number: int) -> list[Any]:
    """Bodies of a strategy, the same ones for the same number."""
    bodies: list[Any] = []

    @seed(number)
    @settings(max_examples=DRAWN, phases=[Phase.generate], **HYPOTHESIS)
    @given(cases)
    def collect(case: Any) -> None:
        if case.body is not NOT_SET:
            bodies.append(case.body)

    collect()
    return bodies


if __name__ == "__main__":
    sys.exit(main())
