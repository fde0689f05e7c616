"""`dual-head classify rationales` has an endpoint write, goes on where it stopped, and tells what failed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dual_head.cli import main

pytest.importorskip("openai")


class Endpoint:
    """An OpenAI-compatible endpoint on 127.0.0.1: `say` makes a reply, or a status, of the last message."""

    def __init__(self):
        self.bodies, self.say = [], lambda asked: f"It freezes. It chills.\n{asked.splitlines()[-1]}"
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.bodies.append(body)
                    said = endpoint.say(body["messages"][-1]["content"])
                message = {"role": "assistant", "content": said}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                found = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
                if isinstance(said, int):
                    found = {"error": {"message": "no", "type": "t", "code": None}}
                text = json.dumps(found).encode()
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = Endpoint()
    yield found
    found.close()


@pytest.fixture
def write(tmp_path, endpoint):
    """Run the command on three rows; gives the exit code and the lines by input."""
    data, file = tmp_path / "rows.jsonl", tmp_path / "rationales.jsonl"
    said = [("Ice is cold.", "right"), ("Fire is wet.", "wrong"), ("Sand is dry.", "right")]
    data.write_text("".join(json.dumps({"input_text": x, "label": y}) + "\n" for x, y in said))

    def write(*more):
        where = ["--dataset", data, "--teacher", endpoint.url, "--model", "big", "--output", file, *more]
        code = main(["classify", "rationales", *map(str, where)])
        lines = file.read_text().splitlines() if file.exists() else []
        return code, {row["input_text"]: row for row in map(json.loads, lines)}

    return write


def test_each_row_gets_a_rationale_and_keeps_its_label(write, endpoint, capsys):
    code, lines = write()
    assert code == 0
    assert {said: row["label"] for said, row in lines.items()} == {
        "Ice is cold.": "right",
        "Fire is wet.": "wrong",
        "Sand is dry.": "right",
    }
    assert {row["rationale"] for row in lines.values()} == {"It freezes. It chills."}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in endpoint.bodies} == {("big", 0, 512)}
    assert "3 written now" in capsys.readouterr().out
    assert write()[0] == 0
    assert len(endpoint.bodies) == 3
    assert "3 had their rationale" in capsys.readouterr().out


def test_a_label_word_is_complained_about_and_then_kept_with_a_flag(write, endpoint, capsys):
    endpoint.say = lambda asked: "It is wrong, I fear.\nFinal Answer: wrong"
    code, lines = write("--attempts", 2)
    assert code == 0
    assert len(endpoint.bodies) == 6
    assert lines["Fire is wet."]["flags"] == ["label word"]
    assert lines["Ice is cold."]["flags"] == ["another answer", "label word"]
    said = capsys.readouterr().out
    assert "3 kept after 2 attempts with a flaw: label word" in said
    assert "2 kept after 2 attempts with a flaw: another answer" in said


def test_a_busy_endpoint_is_asked_again_and_a_row_without_a_reply_told(write, endpoint, capsys):
    good = endpoint.say
    endpoint.say = lambda asked: 503 if "Sand" in asked else good(asked)
    code, lines = write("--max_retries", 2)
    assert code == 1
    assert set(lines) == {"Ice is cold.", "Fire is wet."}
    assert len(endpoint.bodies) == 2 + 3
    assert "1 without a reply: run the same command again" in capsys.readouterr().out
    endpoint.say = good
    code, lines = write()
    assert (code, len(lines), len(endpoint.bodies)) == (0, 3, 6)


def test_a_key_that_is_refused_is_told_with_the_remedy(write, endpoint, capsys):
    endpoint.say = lambda asked: 401
    assert write("--concurrency", 1)[0] == 2
    assert "Set OPENAI_API_KEY" in capsys.readouterr().err


def test_what_was_written_can_be_linted_and_trained_on(write, tmp_path, capsys):
    write()
    assert main(["classify", "lint", "--dataset", str(tmp_path / "rationales.jsonl"), "--no_probe"]) == 0
    said = capsys.readouterr().out
    assert "answers that are the label: 100.0%" in said
    assert "read as triplets" in said
