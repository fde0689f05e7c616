"""A few hundred broken requests to running servers, and what counts as a wrong answer."""

import json
import random
import sys

import pytest

pytest.importorskip("schemathesis", reason="the extra `stress` brings it")

import fuzz
from fuzz import Call, Fuzz
from fuzz_bodies import broken


@pytest.fixture
def recursion():
    """Deep bodies need a limit that other tests are better without."""
    limit = sys.getrecursionlimit()
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.slow
def test_a_few_hundred_requests_are_answered_without_a_fault(tmp_path, monkeypatch, capsys, recursion):
    output = tmp_path / "fuzz.json"
    monkeypatch.setattr(fuzz, "DRAWN", 4)  # drawing takes longest
    monkeypatch.setattr(fuzz, "USES", {"schema": 1, "value": 2, "byte": 1, "header": 1})
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--requests", "400", "--seed", "1", "--output", str(output)])
    assert fuzz.main() == 0
    counts = json.loads(output.read_text())
    assert (counts["requests"], counts["faults"]) == (400, [])
    assert sum(counts["statuses"].values()) == 400
    assert (
        {"200", "400", "401"} <= counts["statuses"].keys() <= {"200", "400", "401", "403", "404", "405", "413", "429"}
    )
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/guides"} <= counts["routes"].keys()
    assert "statuses" in capsys.readouterr().out


class Checking(Fuzz):
    """Looks at answers, without a server."""

    def __init__(self):
        schema = {"type": "object", "required": ["prompt"]}
        self._validators = {"/tokenize": fuzz.Draft202012Validator(schema)}


WHOLE = b'{"error": {"message": "No.", "type": "invalid_request_error", "param": null, "code": null}}'


@pytest.mark.parametrize(
    ("status", "answer", "kind", "fault"),
    [
        (200, b'{"a": 1}', "application/json", None),
        (400, WHOLE, "application/json", None),
        (400, b'{"detail": "No."}', "application/json", "another form"),
        (500, WHOLE, "application/json", "500"),
        (503, WHOLE, "application/json", "503"),
        (200, b'{"a": NaN}', "application/json", "NaN is no JSON"),
        (200, b'{"a": ', "application/json", "with no JSON"),
        (307, b"", "", "307 of type"),
        (200, b'data: {"choices": []}\n\ndata: [DONE]\n\n', "text/event-stream", None),
        (200, b"data: " + WHOLE + b"\n\ndata: [DONE]\n\n", "text/event-stream", None),
        (200, b'data: {"error": {"type": "server_error"}}\n\ndata: [DONE]\n\n', "text/event-stream", "server_error"),
        (200, b'data: {"choices": []}\n\n', "text/event-stream", "at its end"),
    ],
)
def test_a_wrong_answer_is_found(status, answer, kind, fault):
    call = Call("schema", "POST", "/tokenize", "/tokenize", b'{"prompt": "a"}', {})
    report = Checking()._fault(call, status, answer, kind)
    assert report is None if fault is None else fault in report


def test_an_answer_to_what_the_schema_forbids_is_found():
    call = Call("value", "POST", "/tokenize", "/tokenize", b"{}", {})
    assert "against the schema" in Checking()._fault(call, 200, b"{}", "application/json")


def test_broken_bodies_are_json_still_and_come_again_from_the_same_seed():
    body = {"messages": [{"role": "user", "content": "a"}], "alpha": {"helpful": 1.0}, "n": 1}
    first, again = ([broken(body, random.Random(i)) for i in range(200)] for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    assert sum(changed != body for changed in first) > 150
    assert body == {"messages": [{"role": "user", "content": "a"}], "alpha": {"helpful": 1.0}, "n": 1}
