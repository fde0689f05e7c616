"""The load test: which answers are right, and ten seconds of it."""

import json
import sys
from types import SimpleNamespace

import pytest
from load_answers import outcome_of

WHOLE = json.dumps({"choices": [{"message": {"content": "good"}, "finish_reason": "stop"}]})
TEXT = json.dumps({"choices": [{"text": "good", "finish_reason": "stop"}]})
PARTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "go"}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "od"}, "finish_reason": "length"}]},
]


def stream(*parts: dict, end: str = "[DONE]") -> str:
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + f"data: {end}\n\n"


@pytest.mark.parametrize(
    ("status", "body", "streamed", "outcome"),
    [
        (200, WHOLE, False, "answered"),
        (200, TEXT, False, "answered"),
        (200, WHOLE.replace("good", "bad"), False, "another text"),
        (200, WHOLE[:-9], False, "cut"),
        (200, None, False, "lost"),
        (0, None, False, "lost"),
        (400, WHOLE, False, "lost"),
        (503, WHOLE, False, "5xx"),
        (200, stream(*PARTS), True, "answered"),
        (200, stream(*PARTS[:2]), True, "cut"),
        (200, stream(*PARTS, end="{}"), True, "cut"),
        (200, stream(PARTS[0], PARTS[2]), True, "another text"),
        (429, WHOLE, False, "refused without Retry-After"),
    ],
)
def test_only_the_whole_text_of_the_library_is_an_answer(status, body, streamed, outcome):
    answer = SimpleNamespace(status_code=status, text=body, headers={})
    assert outcome_of(answer, streamed, "good") == outcome


def test_a_refusal_says_when_to_come_again():
    assert outcome_of(SimpleNamespace(status_code=429, text="", headers={"Retry-After": "1"}), False, "") == "refused"


@pytest.mark.slow
def test_ten_seconds_of_load_lose_no_answer(tmp_path, monkeypatch, capfd):
    pytest.importorskip("locust", reason="the extra `stress` brings it")
    import load

    output = tmp_path / "load.json"
    monkeypatch.setattr(load, "PROMPTS", 2)
    monkeypatch.setattr(sys, "argv", ["load.py", "--minutes", "0.17", "--output", str(output)])
    assert load.main() == 0
    figures = json.loads(output.read_text())
    assert figures["outcomes"].keys() == {"answered", "refused"}
    assert figures["memory_mb"]["most"] > 100
    assert "capacity_per_second" in capfd.readouterr().out
