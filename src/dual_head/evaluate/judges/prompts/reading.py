"""Verdicts in a judge's own words: how each is written and read. What cannot be read is never a tie."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

RATINGS = range(1, 11)
EXAMPLES = 3  # of contradicting verdicts that are named
_LETTER = re.compile(r"\[\[([ABC])\]\]")
_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
_SINGLE = re.compile(r"\brating\W{0,5}\[(\d+(?:\.\d+)?)\]", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Unreadable(Exception):
    """A judge's words hold no verdict, or two; the text says which."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """How a verdict is written.

    kind: of templates that may ask for it; read: the judge's words to a value, or `Unreadable`; opening and choices:
    what a model is made to begin its reply with, and {what may follow: its value} where there are few; alone:
    whether the reply is the verdict and nothing else.
    """

    kind: str
    read: Callable[[str], float]
    opening: str = ""
    choices: Mapping[str, float] = field(default_factory=dict)
    alone: bool = False


def _last_marked(text: str, marker: re.Pattern[str]) -> str:
    """The marker of the last line that has any: a judge may quote its instructions before it decides."""
    for line in reversed(text.splitlines()):
        marks = sorted(set(marker.findall(line)))
        if len(marks) > 1:
            raise Unreadable(f"contradicting verdicts {', '.join(f'[[{mark}]]' for mark in marks[:EXAMPLES])}")
        if marks:
            return marks[0]
    raise Unreadable("no verdict in it")


def _letter(text: str) -> float:
    return {"A": 1.0, "B": 0.0, "C": 0.5}[_last_marked(text, _LETTER)]


def _rating(text: str) -> float:
    """A rating in double brackets; in single ones, which MT-Bench reads too, where there are no others."""
    marker = _RATING if _RATING.search(text) else _SINGLE
    return _on_the_scale(float(_last_marked(text, marker)))


def _on_the_scale(rating: float) -> float:
    if not RATINGS[0] <= rating <= RATINGS[-1]:
        raise Unreadable(f"{rating:g} is not on the scale of {RATINGS[0]} to {RATINGS[-1]}")
    return rating


def _scores(text: str) -> float:
    """Two numbers on the first line that holds anything, and no third one; "8/10" is 8."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    numbers = _NUMBER.findall(line.replace("/10", " "))
    if len(numbers) != 2:
        raise Unreadable(f"{len(numbers)} scores on its first line instead of 2")
    first, second = (_on_the_scale(float(number)) for number in numbers)
    return 0.5 if first == second else float(first > second)


def _model_letter(text: str) -> float:
    letter = text.strip().strip("\"'`*.")
    if letter not in ("m", "M"):
        raise Unreadable("neither m nor M")
    return float(letter == "m")


PATTERNS = {
    "[[A]]": Pattern(kind="pairwise", read=_letter, opening="[[", choices={"A]]": 1.0, "B]]": 0.0, "C]]": 0.5}),
    "[[rating]]": Pattern(
        kind="single", read=_rating, opening="Rating: [[", choices={f"{n}]]": float(n) for n in RATINGS}
    ),
    "scores": Pattern(kind="pairwise", read=_scores),
    "m/M": Pattern(kind="pairwise", read=_model_letter, choices={"m": 1.0, "M": 0.0}, alone=True),
}
