"""Bodies of requests with a value, a place or a byte broken. It knows JSON, and no server and no schema."""

import copy
import random
from collections.abc import Iterator
from typing import Any

SENSELESS: list[Any] = [
    *[None, True, False, 0, -0.0, -1, 1.5, 16.0, 2**31, 2**63, -(2**63) - 1, 10**400, 1e39, 1e308, 5e-324],
    *[float("nan"), float("inf"), float("-inf"), "", " ", "0.5", "NaN", "null", "\x00", "\ud800", "\udc00a"],
    *["é" * 40, "🐍" * 20, "\u202e", "a" * 5000, "x " * 60_000, "{{ 7*7 }}", "../../etc/passwd", "<script>", "%s%n"],
    *[[], {}, [[]], [None], [0.5], [1e300], ["a", 1], {"": 1}, {"nobody": 1}, {"helpful": float("nan")}],
    *[{"helpful": "1"}, {"helpful": [1]}, {"start": 1}, {"helpful": {"start": 1, "end": 0, "tokens": 0}}],
    *[{"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}, {"type": "regex", "regex": "("}],
    *[{"type": "regex", "regex": "(a*)*b{0,999}"}, {"type": "json_object"}, {"type": "text"}, ["a"] * 1000],
]


def broken(body: Any, rng: random.Random) -> Any:
    """A body with one to three changes."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2))):
        places = list(_places(body))
        if not places:
            return _senseless(rng)
        holder, key = rng.choice(places)
        change = rng.choice(("set", "set", "set", "remove", "add", "deep", "swap"))
        if change == "set":
            holder[key] = _senseless(rng)
        elif change == "remove":
            del holder[key]
        elif change == "deep":
            holder[key] = _nest(holder[key], rng.choice((3, 50, 900)))
        elif change == "swap":
            other, name = rng.choice(places)
            if not _holds(holder[key], other) and not _holds(other[name], holder):
                holder[key], other[name] = other[name], holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(("best_of", "beams", "", "__class__", "é", "\ud800"))] = _senseless(rng)
    return body


def _senseless(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(SENSELESS))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _holds(value: Any, other: Any) -> bool:
    return value is other or any(holder[key] is other for holder, key in _places(value))


def _nest(value: Any, depth: int) -> Any:
    for i in range(depth):
        value = {"a": value} if i % 2 else [value]
    return value


def broken_bytes(content: bytes, rng: random.Random) -> bytes:
    """A body that is cut, bent, repeated, too deep, too long, or in another encoding."""
    at = rng.randrange(len(content) + 1)
    no_text = rng.choice((b"\xff", b"\xc3\x28", b"\x00", b"\xed\xa0\x80"))
    no_number = rng.choice((b"NaN", b"-Infinity", b"1e999", b"1" * 5000))
    return rng.choice(
        (
            b"",
            content[:at],
            content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
            content[:at] + no_text + content[at:],
            content[:-1] + b', "alpha": ' + no_number + b"}",
            content[:-1] + b', "max_tokens": 1, "max_tokens": 0}',
            content + content,
            content + b" " * 200_000,
            b"\xef\xbb\xbf" + content,
            content.decode("latin-1").encode("utf-16"),
            b"[" * 100_000,
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
        )
    )
