"""Preference data: rows of any supported format in, `Pair` out, with a report of every row dropped.

One function per format turns one row into one `Pair`; a new format is one more such function. Rows come from
`sources`, in no matter which file.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, takewhile
from typing import Any

from dual_head.data import Dropped, Message, Pair, RowReport, rows_digest, split_by_prompt
from dual_head.data.sources import rows_of
from dual_head.data.turns import (
    SYSTEMS,
    begins_transcript,
    conversation_of,
    has_question,
    lower_names,
    messages,
    notes_of,
    question_of,
    text,
    transcript,
    unread_keys,
    with_system,
)
from dual_head.errors import DualHeadError, did_you_mean

__all__ = ["FORMATS", "Message", "Pair", "RowReport", "load_pairs", "row_format", "split_by_prompt"]

Row = Mapping[str, Any]


# ---- formats: one function each --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    read: Callable[..., Pair]  # (row), or (row, objective) where the format has objectives
    matches: Callable[[Row], object]
    objectives: tuple[str, ...]


FORMATS: dict[str, Format] = {}


def row_format(name: str, *, matches: Callable[[Row], object], objectives: tuple[str, ...] = ()):
    """Make the decorated function a format; detection asks `matches` of each, in order of definition."""

    def add(read: Callable[..., Pair]) -> Callable[..., Pair]:
        FORMATS[name] = Format(name, read, matches, objectives)
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


_IDS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
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
    better = _IDS.get(str(row[column]).lower())  # tables write it as text
    if better is None:
        raise Dropped("tie")
    first, second = text(row.get("response_0")).strip(), text(row.get("response_1")).strip()
    chosen, rejected = (first, second) if better == 0 else (second, first)
    return Pair(_user(text(row.get("prompt"))), chosen, rejected)


@row_format("pku-ordered", matches=lambda row: _has(row, prompt=str, response=list), objectives=("harmless",))
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


# ---- rows to pairs ---------------------------------------------------------------------------------------


def _reader(name: str, objective: str | None, head: list[Any]) -> Callable[[Row], Pair]:
    """The row function of format `name` for `objective`; "auto" is the format that most of `head` matches."""
    rows = [row for row in head if isinstance(row, Mapping)]
    if name == "auto" and not rows:
        return trl  # any reader: no row can be read, and the report says so
    if name == "auto":
        name = max(FORMATS, key=lambda candidate: sum(bool(FORMATS[candidate].matches(row)) for row in rows))
        if not any(FORMATS[name].matches(row) for row in rows):
            columns = sorted({f"{column} ({_kind(value)})" for row in rows for column, value in row.items()})
            raise DualHeadError(
                f"No format has the columns {', '.join(columns)}. A pair is a question and two replies: rename the "
                f"columns to prompt, chosen and rejected. Formats known: {', '.join(FORMATS)}."
            )
    if name not in FORMATS:
        raise DualHeadError(f"There is no format '{name}'.{did_you_mean(name, [*FORMATS, 'auto'])}")
    row_type = FORMATS[name]
    if not row_type.objectives and objective is not None:
        raise DualHeadError(f"Format '{name}' has one preference per row. Leave out objective='{objective}'.")
    if row_type.objectives and objective not in row_type.objectives:
        choices = ", ".join(row_type.objectives)
        raise DualHeadError(f"Format '{name}' needs objective= one of: {choices}; got {objective!r}.")
    return partial(row_type.read, objective=objective) if row_type.objectives else row_type.read


def load_pairs(
    name: str,
    *,
    split: str = "train",
    objective: str | None = None,
    data_dir: str | None = None,
    format: str = "auto",
    max_rows: int | None = None,
) -> tuple[list[Pair], RowReport]:
    """Read (the first `max_rows` rows of) a file, folder or hub data set; count every row that gave no pair.

    Raises DualHeadError for an unknown source, split, format or objective, and when no pair is left.
    """
    drops, pairs, seen = RowReport(), [], set()
    rows = islice(rows_of(name, split, data_dir, drops), max_rows)
    rows = ((lower_names(row) if isinstance(row, Mapping) else row, where) for row, where in rows)
    head = list(islice(rows, 20))
    read = _reader(format, objective, [row for row, _ in head])
    prompted = _have_prompts(row for row, _ in head)
    for row, where in chain(head, rows):
        drops.rows += 1
        try:
            pair = _pair(row, read, prompted=prompted)
            key = hash(json.dumps([pair.prompt, pair.chosen, pair.rejected]))
            if key in seen:
                raise Dropped("duplicate pair")
        except Dropped as reason:
            drops.drop(str(reason), where)
        else:
            seen.add(key)
            pairs.append(pair)
            drops.notes.update(_notes(row, pair))
    drops.kept = len(pairs)
    if not drops.sources:
        drops.sources[f"{name} [{split}]"] = rows_digest(pairs)
    if not pairs:
        raise DualHeadError(f"No usable pair in '{name}'. Check the file and format=.\n{drops.table()}")
    return pairs, drops


def _have_prompts(rows: Iterable[Any]) -> bool:
    """Whether at least half of the rows have a prompt, so that a row without one is dropped."""
    counts = Counter(has_question(row) for row in rows if isinstance(row, Mapping))
    return counts[True] >= max(counts[False], 1)


def _pair(row: Any, read: Callable[[Row], Pair], *, prompted: bool) -> Pair:
    if not isinstance(row, Mapping):
        raise Dropped("malformed line" if row is None else "malformed row")
    pair = read(row)
    if prompted and _is_implicit(row, pair):
        raise Dropped("empty prompt")
    flaw = pair.flaw()
    keys = unread_keys(row) if flaw == "identical" else ()
    if flaw:
        raise Dropped(f"identical but for {', '.join(keys)}" if keys else flaw)
    return pair


def _is_implicit(row: Row, pair: Pair) -> bool:
    """Whether the prompt is the common start of both replies."""
    return isinstance(pair.prompt, str) and row.get("prompt") is None


def _notes(row: Row, pair: Pair) -> Iterator[str]:
    if _is_implicit(row, pair):
        yield "the prompt is the common start of both replies: no column with a prompt was found"
    yield from notes_of(row, pair.prompt, (pair.chosen, pair.rejected))


_KINDS = {str: "text", list: "list", dict: "object", bool: "true or false", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)
