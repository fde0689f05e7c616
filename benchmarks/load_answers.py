"""What an answer of a server under load is: the library's text, a refusal with the time of another try, or a fault."""

import json
from typing import Any


def outcome_of(answer: Any, stream: bool, text: str) -> str:
    """Of one answer: "answered" and "refused" are right. text: what the library answers."""
    if answer.status_code == 429:
        return "refused" if answer.headers.get("Retry-After", "").isdigit() else "refused without Retry-After"
    if answer.status_code >= 500:
        return "5xx"
    if answer.status_code != 200 or not answer.text:
        return "lost"
    try:
        reply = _streamed(answer.text) if stream else _text(json.loads(answer.text)["choices"][0])
    except (ValueError, KeyError, IndexError):
        return "cut"
    return "answered" if reply == text else "another text"


def _streamed(events: str) -> str:
    """The text of a whole stream. Errors: one that has no end."""
    *chunks, done, _ = events.split("\n\n")
    if done != "data: [DONE]":
        raise ValueError(done)
    choices = [choice for chunk in chunks for choice in json.loads(chunk.removeprefix("data: "))["choices"]]
    if choices[-1]["finish_reason"] is None:
        raise ValueError("It has no finish_reason.")
    return "".join(_text(choice) for choice in choices)


def _text(choice: dict[str, Any]) -> str:
    return str(choice.get("text") or choice.get("message", choice.get("delta", {})).get("content") or "")
