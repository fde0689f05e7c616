"""What one row of preference data says: one function per format turns it into a `Pair`, or into `Feedback`.

A new format is one more such function. Rows are read by `load`, from no matter which file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from dual_head.data import LABEL, Cut, Dropped, Feedback, Message, Pair
from dual_head.data.cells import BITS, is_empty, truth, was_cut
from dual_head.data.turns import (
    COMPLETIONS,
    SYSTEMS,
    begins_transcript,
    conversation_of,
    has_question,
    messages,
    question_of,
    text,
    transcript,
    with_system,
)
from dual_head.errors import DualHeadError

__all__ = ["FORMATS", "SCORE", "Format", "row_format"]

Row = Mapping[str, Any]


# ---- formats: one function each --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """How a row is read: read(row), with objective= where it has objectives, with threshold= where scores judge it.

    judged_by: the column that says how good a single reply is; None for pairs.
    """

    name: str
    read: Callable[..., Pair | Feedback]
    matches: Callable[[Row], object]
    objectives: tuple[str, ...] = ()
    judged_by: str | None = None


FORMATS: dict[str, Format] = {}


def row_format(name: str, *, matches: Callable[[Row], object], **options: Any):
    """Make the decorated function a format; detection asks `matches` of each, in order of definition."""

    def add(read: Callable[..., Any]) -> Callable[..., Any]:
        FORMATS[name] = Format(name, read, matches, **options)
        return read

    return add


def _has(row: Row, **kinds: type) -> bool:
    return all(isinstance(row.get(column), kind) for column, kind in kinds.items())


def _are_messages(row: Row) -> bool:
    return all(isinstance(row.get(column), list | Mapping) for column in ("chosen", "rejected"))


def _user(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def _replies(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Pair:
    """The pair of two whole conversations, which may differ in the last assistant turn only."""
    if any(not side or side[-1]["role"] != "assistant" for side in (chosen, rejected)):
        raise Dropped("last turn is not the assistant's")
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("conversations differ before the last reply")
    return Pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


@row_format(
    "hh",
    matches=lambda row: row.get("prompt") is None and _has(row, chosen=str) and begins_transcript(row["chosen"]),
)
def hh(row: Row) -> Pair:
    """Anthropic HH-RLHF: chosen and rejected are whole transcripts."""
    return _replies(transcript(text(row.get("chosen"))), transcript(text(row.get("rejected"))))


@row_format("dahoas", matches=lambda row: _has(row, prompt=str, chosen=str) and begins_transcript(row["prompt"]))
def dahoas(row: Row) -> Pair:
    """Dahoas/full-hh-rlhf: the prompt is a transcript up to "Assistant:", the replies complete it."""
    turns = transcript(text(row.get("prompt")))
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]
    if turns and turns[-1]["role"] != "user":
        raise Dropped("malformed row")
    return Pair(turns, text(row.get("chosen")).strip(), text(row.get("rejected")).strip())


_PKU_PREFERENCES = {"helpful": "better_response_id", "harmless": "safer_response_id"}


@row_format(
    "pku",
    matches=lambda row: _has(row, prompt=str, response_0=str, response_1=str),
    objectives=tuple(_PKU_PREFERENCES),
)
def pku(row: Row, objective: str) -> Pair:
    """PKU-SafeRLHF: two responses to a question, and the id of the preferred one for each objective."""
    column = _PKU_PREFERENCES[objective]
    if column not in row:
        raise Dropped("malformed row")
    better = BITS.get(str(row[column]).lower())
    if better is None:
        raise Dropped("tie")
    first, second = text(row.get("response_0")).strip(), text(row.get("response_1")).strip()
    chosen, rejected = (first, second) if better == 0 else (second, first)
    return Pair(_user(text(row.get("prompt"))), chosen, rejected)


@row_format(
    "pku-ordered",
    matches=lambda row: _has(row, prompt=str, response=list) and not _is_judged(row),
    objectives=("harmless",),
)
def pku_ordered(row: Row, objective: str) -> Pair:  # noqa: ARG001 - named, so that "helpful" is refused
    """PKU-SafeRLHF as {"prompt", "response": [safer, less safe]}."""
    match row:
        case {"prompt": question, "response": [safer, unsafe]}:
            return Pair(_user(text(question)), text(safer).strip(), text(unsafe).strip())
    raise Dropped("malformed row")


@row_format("ultrafeedback", matches=lambda row: _are_messages(row) and has_question(row, str))
def ultrafeedback(row: Row) -> Pair:
    """UltraFeedback binarized: whole conversations; the prompt column repeats the user's message."""
    question = conversation_of(row)
    chosen, rejected = messages(row.get("chosen")), messages(row.get("rejected"))
    if not any(message["role"] == "user" for message in chosen + rejected):
        return _replies(question + chosen, question + rejected)
    if question[-1]["content"].strip() not in {message["content"].strip() for message in chosen}:
        raise Dropped("prompt is not among the messages")
    return _replies(with_system(row, chosen), with_system(row, rejected))


@row_format("trl-conversational", matches=_are_messages)
def trl_conversational(row: Row) -> Pair:
    """TRL's messages: a prompt and the replies to it, or whole conversations that share their start."""
    prompt = question_of(row) if has_question(row) else ()
    if isinstance(prompt, str):
        return ultrafeedback(row)
    sides = (messages(row.get("chosen")), messages(row.get("rejected")))
    # Some data sets have a prompt column and whole conversations beside it: the prompt enters once.
    chosen, rejected = (side if side[: len(prompt)] == prompt else prompt + side for side in sides)
    return _replies(with_system(row, chosen), with_system(row, rejected))


@row_format(
    "question",
    matches=lambda row: _has(row, chosen=str, rejected=str) and has_question(row) and _is_answered(row),
)
def question(row: Row) -> Pair:
    """A question in a column of another name, messages, or a prompt with a system column; two texts answer it."""
    return Pair(conversation_of(row), text(row.get("chosen")), text(row.get("rejected")))


def _is_answered(row: Row) -> bool:
    """Whether the replies answer what a row asks; a text in "prompt" alone is continued instead."""
    return not isinstance(row.get("prompt"), str) or any(column in row for column in SYSTEMS)


@row_format("trl", matches=lambda row: _has(row, chosen=str, rejected=str))
def trl(row: Row) -> Pair:
    """TRL's texts: a prompt and its continuations, or two texts that share their start.

    The shared start is cut back to the last whitespace, which goes to the replies, so that no word is split.
    """
    chosen, rejected = text(row.get("chosen")), text(row.get("rejected"))
    if row.get("prompt") is not None:
        return Pair(text(row["prompt"]), chosen, rejected)
    if has_question(row):
        return question(row)
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    start = len(re.sub(r"\s*\S*\Z", "", chosen[:shared]))
    return Pair(chosen[:start], chosen[start:], rejected[start:])


# ---- single replies --------------------------------------------------------------------------------------

SCORE = "score"  # beside `LABEL`, what is told of it


def _is_judged(row: Row, *columns: str) -> bool:
    """Whether a row is one reply and a column that says how good it is."""
    single = any(isinstance(row.get(column), str | list | Mapping) for column in COMPLETIONS)
    return single and "chosen" not in row and any(column in row for column in columns or (LABEL, SCORE))


def _exchange(row: Row) -> tuple[str | tuple[Message, ...], str]:
    """The prompt and the reply, which a text in "prompt" alone is continued by; "cut": the reply has no end."""
    column = next((column for column in COMPLETIONS if row.get(column) is not None), None)
    if column is None:
        raise Dropped("no reply")
    if isinstance(row[column], str):
        reply = text(row[column])
        prompt = conversation_of(row) if _is_answered(row) else text(row["prompt"])
        return prompt, Cut(reply) if was_cut(row.get("cut")) else reply
    prompt, turns = conversation_of(row), messages(row[column])
    turns = turns if turns[: len(prompt)] == prompt else prompt + turns
    if not turns or turns[-1]["role"] != "assistant":
        raise Dropped("last turn is not the assistant's")
    return turns[:-1], turns[-1]["content"]


@row_format("unpaired", matches=lambda row: _is_judged(row, LABEL), judged_by=LABEL)
def unpaired(row: Row) -> Feedback:
    """TRL's unpaired preferences: a prompt, a completion and a label, true where the completion is desirable."""
    label = truth(_value(row, LABEL), "The label")
    return Feedback(*_exchange(row), label)


@row_format("scored", matches=lambda row: _is_judged(row, SCORE), judged_by=SCORE)
def scored(row: Row, threshold: float) -> Feedback:
    """A prompt, a completion and a score; it is desirable from the threshold on."""
    score = _value(row, SCORE)
    try:
        if isinstance(score, bool):
            raise TypeError
        points = float(score)
    except (TypeError, ValueError):
        raise DualHeadError(f"The score must be a number, not {score!r}. Correct or remove the row.") from None
    return Feedback(*_exchange(row), points >= threshold)


def _value(row: Row, column: str) -> Any:
    """What a column says of a reply. Errors: `Dropped` where it is empty: null, NaN, or a table's empty cell."""
    value = row.get(column)
    if is_empty(value):
        raise Dropped(f"no {column}")
    return value
