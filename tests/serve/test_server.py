"""What a server does at its limits: too many requests, clients that leave, a dying worker, guides that change."""

import errno
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import httpx2
import pytest
import torch
from engines import GUIDES, small_engine, tiny_model
from models import guided_lm, tiny_lm
from openai import APIError, InternalServerError
from servers import ScriptedEngine, request_bytes, running_server, until

from dual_head import AlignedModel
from dual_head.backbone.checkpoint import find_file
from dual_head.cli.serve import ServeOptions
from dual_head.errors import DualHeadError
from dual_head.serve import host
from dual_head.serve.openai import middleware, scores
from dual_head.serve.server import listen, open_api
from dual_head.serve.server import serve as run_server
from dual_head.serve.settings import EngineSettings, ServerSettings


@pytest.fixture(scope="module")
def model():
    return tiny_model("hidden")


@pytest.fixture
def serve(model, tokenizer):
    """Runs servers over scripted engines, each of which is the next of a list."""

    def run(*engines, **settings):
        queue = list(engines)
        return running_server(model, tokenizer, lambda _: queue.pop(0) if len(queue) > 1 else queue[0], **settings)

    return run


def wait_for_requests(engine, count: int = 1):
    """Wait for so many requests beside that of the warm-up."""
    until(lambda: len(engine.requests) > count)


# ---- who may ask, and how much ---------------------------------------------------------------------------


def test_only_who_has_the_key_is_answered_and_health_and_page_are_open(serve, capfd):
    with serve(ScriptedEngine(), api_key="secret-key", admin_key="admin-key") as server:
        for key in (None, "wrong", "secret-ke", "admin-key"):
            response = server.chat(key=key)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert server.chat(key="secret-key").status_code == 200
        for path in ("/metrics", "/v1/models", "/openapi.json"):
            assert server.http.get(path).status_code == 401
        for path in ("/health", "/", "/playground/page.js", "/playground/page.css"):
            assert server.http.get(path).status_code == 200
        assert server.post("/v1/guides", {"name": "a", "source": "b"}, key="secret-key").status_code == 401
    assert "secret-key" not in "".join(capfd.readouterr())


def test_without_an_admin_key_nobody_changes_guides(serve):
    with serve(ScriptedEngine()) as server:
        response = server.post("/v1/guides", {"name": "a", "source": "b"})
        assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
        assert server.http.delete("/v1/guides/hidden").status_code == 403


def test_keys_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("DUAL_HEAD_API_KEY", "from-there")
    assert ServerSettings().api_key == "from-there"
    assert ServerSettings(api_key="said").api_key == "said"


def test_every_size_of_the_engine_is_an_option_with_the_same_default():
    defaults = {option.name: option.default for option in fields(ServeOptions)}
    for size in fields(EngineSettings):
        assert defaults[size.name] == size.default


def test_a_page_that_points_its_own_name_at_this_machine_is_refused(serve):
    local = ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "127.0.0.2")
    foreign = ("example.org", "example.org:8000", "localhost.example.org", "127.0.0.1.example.org", "[::1", "a b")
    with serve(ScriptedEngine()) as server:
        for name in local:
            assert server.http.get("/v1/models", headers={"Host": name}).status_code == 200
        for name in foreign:
            for path in ("/", "/v1/models", "/health"):
                response = server.http.get(path, headers={"Host": name})
                assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
    with serve(ScriptedEngine(), api_key="key") as server:  # a page of elsewhere has no key
        response = server.http.get("/v1/models", headers={"Host": "example.org", "Authorization": "Bearer key"})
        assert response.status_code == 200


def test_a_large_body_is_refused_before_it_is_read(serve):
    with serve(ScriptedEngine(), max_body_bytes=1000) as server:
        assert server.chat("x" * 2000).status_code == 413
        chunks = server.http.post("/v1/completions", content=iter([b"x" * 600] * 3))  # without a length
        assert (chunks.status_code, chunks.json()["error"]["type"]) == (413, "invalid_request_error")
        late = http.client.HTTPConnection("127.0.0.1", server.http.base_url.port)
        late.request("POST", "/v1/completions", b"x" * 20_000_000)  # is not cut off while it sends
        assert late.getresponse().status == 413
        late.close()
        assert server.chat().status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(serve, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.1)
    with serve(ScriptedEngine()) as server, socket.create_connection(("127.0.0.1", server.http.base_url.port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_more_than_the_queue_holds_is_refused_and_all_the_rest_is_answered(serve):
    engine = ScriptedEngine(pause=0.05)
    with serve(engine, max_queue=4) as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.chat(), range(12)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 4
        refused = answers[codes.index(429)]
        assert (refused.headers["retry-after"], refused.json()["error"]["type"]) == ("1", "rate_limit_error")
        assert server.chat(n=5).json()["error"]["param"] == "n"
        assert server.chat(n=4).status_code == 200
        assert server.api.host.admitted == 0


def test_a_request_ends_when_its_time_is_up(serve):
    engine = ScriptedEngine(pause=0.2)
    with serve(engine, request_timeout=0.5) as server:
        whole = server.chat(max_tokens=20)
        assert (whole.status_code, whole.json()["error"]["type"]) == (504, "timeout_error")
        streamed = server.chat(max_tokens=20, stream=True)
        assert streamed.status_code == 200
        assert "had not ended after 0.5 s" in streamed.text
        until(lambda: engine.cancelled == 2)
        assert server.metric("num_requests_running") == 0


def test_pages_of_other_origins_may_ask_only_where_that_is_said(serve):
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with serve(ScriptedEngine()) as server:
        assert "access-control-allow-origin" not in server.http.options("/v1/completions", headers=origin).headers
    with serve(ScriptedEngine(), allow_origin=["https://example.org"], api_key="secret-key") as server:
        answer = server.http.options("/v1/completions", headers=origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://example.org")
        other = server.http.options("/v1/completions", headers={**origin, "Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_a_port_in_use_is_told():
    with listen(ServerSettings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(DualHeadError, match=rf"127.0.0.1:{port} is in use. Choose another --port"):
            listen(ServerSettings(port=port))
    with pytest.raises(DualHeadError, match="Cannot listen at 203"):
        listen(ServerSettings(host="203.0.113.1", port=0))


def test_the_page_loads_nothing_from_elsewhere(serve):
    with serve(ScriptedEngine()) as server:
        page = server.http.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        parts = [page.text, *(server.http.get(f"/playground/page.{kind}").text for kind in ("js", "css"))]
    assert not any(
        word in part for part in parts for word in ("http://", "https://", "innerHTML", "insertAdjacentHTML")
    )


def test_the_page_has_no_file_but_its_parts(serve):
    with serve(ScriptedEngine()) as server:
        part = server.http.get("/playground/page.css")
        for query in ("name=/etc/passwd", "name=../../../../pyproject.toml", "kind=text/html"):
            answer = server.http.get(f"/playground/page.css?{query}")
            assert (answer.text, answer.headers["content-type"]) == (part.text, part.headers["content-type"])


# ---- clients that leave ----------------------------------------------------------------------------------


def left_early(server, engine, *, read: bool, **fields) -> None:
    """Ask, and close the connection while the reply is made; read: only when some of it has come."""
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 50, **fields}
    with socket.create_connection(("127.0.0.1", server.http.base_url.port)) as connection:
        connection.sendall(request_bytes("/v1/chat/completions", **body))
        until(lambda: engine.running)
        if read:
            assert connection.recv(10)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("stream", "read", "pause"), [(False, False, 0.05), (True, True, 0.05), (True, False, 100.0)])
def test_the_request_of_a_client_that_left_is_cancelled(serve, stream, read, pause, n):
    engine = ScriptedEngine()
    with serve(engine) as server:
        engine.pause = pause  # the warm-up was quick
        left_early(server, engine, read=read, stream=stream, n=n)
        until(lambda: engine.running == 0)
        assert engine.cancelled == n
        until(lambda: server.api.host.admitted == 0)
        until(lambda: 'request_success_total{finished_reason="abort"} 1.0' in server.http.get("/metrics").text)


def test_the_row_of_a_client_that_left_is_free_again(model, tokenizer):
    with running_server(model, tokenizer, small_engine) as server:
        engine = server.api.host.engine
        seen = []
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 100, "stream": True, "ignore_eos": True}
        with server.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            seen.append(next(stream.iter_lines()))
        until(lambda: engine.stats().running == 0)
        assert seen[0].startswith("data: ")
        assert server.metric("generation_tokens_total") < 100


# ---- the end, and the death of a worker ------------------------------------------------------------------


def test_what_runs_when_the_server_stops_is_answered(serve):
    engine = ScriptedEngine(pause=0.1)
    with serve(engine) as server, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(server.chat, max_tokens=10)
        streamed = pool.submit(server.chat, max_tokens=10, stream=True)
        wait_for_requests(engine, 2)
        server.server.should_exit = True
        assert len(whole.result().json()["choices"][0]["message"]["content"].split()) == 10
        assert streamed.result().text.endswith("data: [DONE]\n\n")
    assert engine.cancelled == 0


def test_a_dead_worker_is_told_and_another_one_answers(serve):
    dead, alive = ScriptedEngine(pause=0.1), ScriptedEngine()
    with serve(dead, alive) as server, server.client() as client:
        messages = [{"role": "user", "content": "a"}]
        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(server.chat, max_tokens=30)
            create = client.chat.completions.create
            streamed = pool.submit(lambda: list(create(model="toy", messages=messages, max_tokens=30, stream=True)))
            wait_for_requests(dead, 2)
            time.sleep(0.3)
            dead.die()
            refused = whole.result()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["type"] == "service_unavailable_error"
            with pytest.raises(APIError, match="The engine stopped"):
                streamed.result()
        until(lambda: server.http.get("/health").status_code == 200)
        assert server.chat().status_code == 200
        assert alive.requests
        assert server.metric("engine_restarts_total") == 1


def test_while_there_is_no_worker_nobody_waits(serve):
    """An engine that cannot be started is tried again, and requests are refused until it runs."""
    dead, broken, alive = ScriptedEngine(), ScriptedEngine(), ScriptedEngine()
    broken.start = lambda: (_ for _ in ()).throw(RuntimeError("no device"))
    with serve(dead, broken, alive) as server, server.client() as client:
        dead.die()
        health = server.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "restarting"})
        with pytest.raises(InternalServerError, match="The engine is restarting"):
            client.completions.create(model="toy", prompt="a")
        until(lambda: server.http.get("/health").status_code == 200)
        assert server.metric("engine_restarts_total") == 2


def test_a_server_is_ready_when_it_has_generated(serve):
    engine = ScriptedEngine(pause=0.1)
    with serve(engine, wait=False) as server:
        until(lambda: engine.requests)
        assert server.http.get("/health").json() == {"status": "starting"}
        assert server.chat().status_code == 503
        until(lambda: server.http.get("/health").json() == {"status": "ready"})
        assert server.chat().status_code == 200


def test_a_model_that_cannot_generate_at_its_own_strengths_ends_the_start_with_the_reason(tokenizer):
    model = tiny_model("hidden", "linear", fusion="probabilities")
    model.config.alpha = {"hidden": 1.0, "linear": 1.0}  # as a folder may say
    settings, lines = ServerSettings(port=0), []
    with listen(settings) as listener, pytest.raises(DualHeadError, match="sum is at most 1"):
        run_server(model, tokenizer, "toy", settings, EngineSettings(num_blocks=8), listener, lines.append)
    assert lines == []


def test_a_guide_that_has_the_name_of_the_backbone_ends_the_start(tokenizer):
    engine = ScriptedEngine()
    with pytest.raises(DualHeadError, match="A guide is named 'base'"):
        open_api(guided_lm({"base": GUIDES["hidden"]}), lambda _: engine, tokenizer, "toy", ServerSettings())
    assert not engine.alive


# ---- the log ---------------------------------------------------------------------------------------------


def test_one_line_of_json_tells_of_each_request_and_of_no_prompt(serve, capfd):
    with serve(ScriptedEngine()) as server:
        server.chat("my secret words", alpha={"hidden": 0.5})
        server.chat("my secret words", alpha={"nobody": 1})
        server.chat("my secret words", user="my secret name", stream=True, n=2)
        server.post("/v1/completions", {"prompt": "my secret words", "my secret field": 1})
        server.http.get("/health")
    logged = capfd.readouterr().err
    assert "secret" not in logged
    lines = [json.loads(line) for line in logged.splitlines()]
    assert [line["status"] for line in lines] == [200, 400, 200, 400]
    assert lines[0]["alpha"] == {"hidden": 0.5}
    assert lines[0]["completion_tokens"] == 4
    assert lines[0]["finish_reasons"] == ["length"]
    assert lines[0]["seconds"] >= lines[0]["first_token_seconds"] >= 0
    assert lines[2]["finish_reasons"] == ["length", "length"]
    assert lines[1]["model"] is None


class Disk(io.RawIOBase):
    """A file on a disk that may be full."""

    def __init__(self):
        self.full, self.content = True, b""

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.content += content
        return len(content)


def test_a_full_disk_for_the_log_stops_no_request_and_is_told_once_when_it_has_room(serve, monkeypatch):
    disk = Disk()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BufferedWriter(disk), line_buffering=True))  # as it is made
    with serve(ScriptedEngine()) as server:
        assert [server.chat().status_code for _ in range(100)] == [200] * 100
        until(lambda: server.metric("log_lines_unwritten_total") == 100)
        disk.full = False
        assert [server.chat().status_code for _ in range(2)] == [200] * 2
    lines = [json.loads(line) for line in disk.content.splitlines()]
    assert [line["unwritten_lines"] for line in lines if "unwritten_lines" in line] == [100]
    assert "unwritten_lines" in lines[-2]
    assert len(lines) < 100  # of those that were not written, a buffer keeps a few


# ---- guides that change ----------------------------------------------------------------------------------


def post_guide(server, **body):
    return server.post("/v1/guides", body, key="admin-key")


def delete_guide(server, name: str):
    """On a connection of its own, which the server closes where it fails."""
    headers = {"Authorization": "Bearer admin-key"}
    return httpx2.delete(f"{server.url}/v1/guides/{name}", headers=headers, timeout=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of one guide for the tiny backbone, and one of another backbone."""
    folder = tmp_path_factory.mktemp("guides")
    tiny_model("linear").save_pretrained(folder / "linear")
    AlignedModel.from_backbone(tiny_lm("qwen2"), {"other": GUIDES["linear"]}).save_pretrained(folder / "other")
    return folder


@pytest.mark.slow
def test_guides_come_and_go_under_load_and_no_request_is_lost(trained, tokenizer):
    model = tiny_model("hidden")
    with running_server(model, tokenizer, small_engine, admin_key="admin-key") as server:
        stop, codes, texts = threading.Event(), [], set()

        def ask() -> None:
            while not stop.is_set():
                answer = server.chat(
                    "abc", max_tokens=20, temperature=0, model="toy:hidden", stream=len(codes) % 2 == 0
                )
                codes.append(answer.status_code)
                if not answer.headers["content-type"].startswith("text/event"):
                    texts.add(answer.json()["choices"][0]["message"]["content"])

        def wait_for_answers() -> None:
            before = len(codes)
            until(lambda: len(codes) > before + 6)

        with ThreadPoolExecutor(6) as pool:
            loads = [pool.submit(ask) for _ in range(6)]
            for _ in range(2):
                wait_for_answers()
                attached = post_guide(server, name="safe", source=str(trained / "linear"), alpha=0.5)
                assert attached.status_code == 200, attached.text
                assert "toy:safe" in [card["id"] for card in attached.json()["data"]]
                reply = server.chat("abc", alpha={"safe": 3.0}, max_tokens=2).json()
                assert reply["alpha"] == {"hidden": 0.0, "safe": 3.0}
                wait_for_answers()
                assert delete_guide(server, "safe").status_code == 200
                assert server.chat("abc", alpha={"safe": 1}).status_code == 400
            stop.set()
            for load in loads:
                load.result()
        assert set(codes) == {200}
        assert len(texts) == 1  # the guide that stays acts the same before, between and after


def test_an_attached_guide_acts_as_in_the_library(trained, tokenizer):
    model = tiny_model("hidden")
    with running_server(model, tokenizer, small_engine, admin_key="admin-key") as server:
        assert post_guide(server, name="safe", source=str(trained / "linear")).status_code == 200
        text = server.chat("abc", max_tokens=12, temperature=0, alpha={"safe": 2.0}).json()["choices"][0]["message"]
    model.detach("safe")
    model.attach("safe", trained / "linear")
    model._tokenizer = tokenizer
    messages = [{"role": "user", "content": "abc"}]
    assert text["content"] == model.generate(messages, alpha={"safe": 2.0}, max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": "hidden", "source": "linear"}, "There is a guide 'hidden' already"),
        ({"name": "safe", "source": "other"}, "another backbone"),
        ({"name": "safe", "source": "nowhere"}, "nowhere"),
        ({"name": "safe", "source": "linear", "source_name": "x"}, "holds no guide 'x'"),
        ({"name": "base", "source": "linear"}, "name of a model"),
        ({"name": "a.b", "source": "linear"}, "a.b"),
        ({"name": "safe", "source": "a" * 5000}, "File name too long"),
        ({"name": "safe", "source": "\0"}, "null"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused_and_nothing_changes(serve, model, trained, body, words):
    engine = ScriptedEngine()
    with serve(engine, admin_key="admin-key") as server:
        answer = post_guide(server, **{**body, "source": str(trained / body["source"])})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == ("name" if body["name"] in ("base", "a.b") else "source")
        assert list(model.config.guides) == ["hidden"]
        assert server.chat().status_code == 200
        assert engine.alive
        assert delete_guide(server, "nobody").status_code == 404


def test_a_guide_that_the_engine_does_not_take_is_taken_out_again(model, tokenizer, trained):
    def build(model):
        if "safe" in model.config.guides:
            raise DualHeadError("Rows cannot hold such a guide.")
        return ScriptedEngine()

    with running_server(model, tokenizer, build, admin_key="admin-key") as server:
        answer = post_guide(server, name="safe", source=str(trained / "linear"))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "source")
        assert "Rows cannot hold" in answer.json()["error"]["message"]
        assert list(model.config.guides) == ["hidden"]
        assert server.chat().status_code == 200


def test_of_two_that_remove_a_guide_one_is_told_that_there_is_none(tokenizer):
    model, engine = tiny_model("hidden", "linear"), ScriptedEngine()
    with running_server(model, tokenizer, lambda _: engine, admin_key="admin-key") as server:
        engine.pause = 0.1
        with ThreadPoolExecutor(3) as pool:
            running = pool.submit(server.chat, max_tokens=10)
            wait_for_requests(engine)
            removed = [pool.submit(delete_guide, server, "linear") for _ in range(2)]  # both wait for what runs
            assert running.result().status_code == 200
            answers = sorted((future.result() for future in removed), key=lambda answer: answer.status_code)
        assert [answer.status_code for answer in answers] == [200, 404]
        assert answers[1].json()["error"]["message"] == "There is no guide 'linear'."


def test_a_guide_without_which_no_engine_starts_is_put_back(tokenizer):
    model = tiny_model("hidden", "linear")
    guide = model.guide("hidden")

    def build(model):
        if "hidden" not in model.config.guides:
            raise RuntimeError("no device")
        return ScriptedEngine()

    with running_server(model, tokenizer, build, admin_key="admin-key") as server:
        assert delete_guide(server, "hidden").status_code == 500
        assert list(model.config.guides) == list(model.config.alpha) == ["hidden", "linear"]
        assert model.guide("hidden") is guide
        assert server.chat(alpha={"hidden": 0.5}).status_code == 200


def test_a_guide_stays_while_it_scores_for_a_client_that_left(tokenizer, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    score_rows = scores.score_rows

    def slow(*arguments, **options):
        begun.set()
        assert go_on.wait(20)
        return score_rows(*arguments, **options)

    monkeypatch.setattr(scores, "score_rows", slow)
    model = tiny_model("hidden", "linear")
    with running_server(model, tokenizer, lambda _: ScriptedEngine(), admin_key="admin-key") as server:
        try:
            with socket.create_connection(("127.0.0.1", server.http.base_url.port)) as connection:
                connection.sendall(request_bytes("/v1/score", prompt="a", replies=[" b"]))
                assert begun.wait(20)
            with ThreadPoolExecutor(1) as pool:
                removed = pool.submit(delete_guide, server, "linear")
                time.sleep(0.5)  # in which the server learns that the client has left
                still, answered = list(model.config.guides), removed.done()
                go_on.set()
                assert removed.result().status_code == 200
        finally:
            go_on.set()
    assert (still, answered) == (["hidden", "linear"], False)


def test_requests_are_answered_while_a_guide_is_fetched(serve, trained, monkeypatch):
    fetching, fetched = threading.Event(), threading.Event()

    def slow(source, name):
        fetching.set()
        assert fetched.wait(20)
        return find_file(source, name)

    monkeypatch.setattr(host, "find_file", slow)
    with serve(ScriptedEngine(), admin_key="admin-key") as server, ThreadPoolExecutor(1) as pool:
        attached = pool.submit(post_guide, server, name="safe", source=str(trained / "linear"))
        try:
            assert fetching.wait(20)
            assert server.chat().status_code == 200
        finally:
            fetched.set()
        assert attached.result().status_code == 200
        delete_guide(server, "safe")


def test_guides_that_cannot_change_in_time_stay(serve, model, trained):
    engine = ScriptedEngine(pause=0.3)
    with serve(engine, admin_key="admin-key", request_timeout=3.0) as server:
        server.api.host.patience = 0.2
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(server.chat, max_tokens=5)
            wait_for_requests(engine)
            answer = post_guide(server, name="safe", source=str(trained / "linear"))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert running.result().status_code == 200
        assert list(model.config.guides) == ["hidden"]


# ---- a plain model ---------------------------------------------------------------------------------------


def test_a_plain_model_is_served_without_guides(tokenizer):
    lm = tiny_lm("llama")
    lm.generation_config.eos_token_id = None
    model = AlignedModel.from_backbone(lm, {}, tokenizer=tokenizer)
    with running_server(model, tokenizer, small_engine) as server:
        assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == ["toy"]
        answer = server.chat("abc", max_tokens=8, temperature=0).json()
        assert answer["alpha"] == {}
        assert server.chat("abc", alpha=0.5).json()["error"]["param"] == "alpha"
        assert server.chat("abc", alpha=0).status_code == 200
    ids = torch.tensor([tokenizer("u:abc;a:")["input_ids"]])
    output = lm.generate(ids, max_new_tokens=8, do_sample=False)
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(output[0, 8:], skip_special_tokens=True)
