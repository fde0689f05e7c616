"""Answers in other people's files: AlpacaEval's outputs, Arena-Hard's and MT-Bench's answers, and our own.

What is written here their own tools read, and what they wrote can stand in a comparison as a system. It knows
layouts of files; nothing of models, judges or scores.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dual_head.data import RowReport
from dual_head.data.files import kind_of
from dual_head.data.sources import rows_of
from dual_head.errors import DualHeadError
from dual_head.evaluate.types import Answer, Question
from dual_head.places import atomic_folder

__all__ = [
    "ARENA_2",
    "Recorded",
    "content_of",
    "instruction_of",
    "read_answers",
    "write_alpaca_eval",
    "write_arena_hard",
    "write_mt_bench",
]

ARENA_2 = "arena-hard-v2.0"  # the layout of questions whose answers Arena-Hard 2.0 reads
_FORMS = (
    'A file of answers is AlpacaEval\'s JSON ("instruction", "output"), the JSONL of Arena-Hard or MT-Bench '
    '("question_id", "choices", or "uid", "messages"), or a file of our own ("prompt", "replies").'
)
_ANNOTATED = {"instruction", "output_1", "output_2"}  # the columns of AlpacaEval's annotations.json
_SPEAKERS = {"system": "", "user": "Human: ", "assistant": "Assistant: "}


@dataclass(frozen=True)
class Recorded:
    """The answers in a file: who gave them, how they were decoded where it says so, and each by what names it.

    answers: by ("id", question id), ("instruction", text) or ("content", prompt and follow-ups as JSON).
    """

    model: str = ""
    decoding: dict[str, Any] | None = None
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def of(self, question: Question) -> Answer | None:
        """Look up the answer to a question, under its id; None where there is none."""
        names = (("content", content_of(question)), ("instruction", instruction_of(question)), ("id", question.id))
        found = next((self.answers[name] for name in names if name in self.answers), None)
        return found and Answer(
            question=question.id, replies=found.replies, tokens=found.tokens, finished=found.finished
        )


def instruction_of(question: Question) -> str:
    """One text for what is asked: a single message as it is, a longer conversation as "Human: ..." paragraphs."""
    if isinstance(question.prompt, str):
        return question.prompt
    if len(question.prompt) == 1:
        return question.prompt[0]["content"]
    return "\n\n".join(_SPEAKERS[message["role"]] + message["content"] for message in question.prompt)


def content_of(question: Question) -> str:
    """All that is asked as one line of JSON, whatever its id."""
    prompt = question.prompt if isinstance(question.prompt, str) else list(question.prompt)
    return json.dumps([prompt, list(question.follow_ups)], ensure_ascii=False, sort_keys=True)


# ---- writing ---------------------------------------------------------------------------------------------


def write_alpaca_eval(
    file: str | Path, questions: Sequence[Question], answers: Mapping[str, Answer], *, generator: str
) -> None:
    """Write what `alpaca_eval --model_outputs` reads: [{"dataset", "instruction", "output", "generator"}].

    Spaces around an output go. Errors: a question of several turns, which AlpacaEval has not; one without an answer.
    """
    for question in questions:
        if question.follow_ups:
            raise DualHeadError(f"AlpacaEval has no second turn, and '{question.id}' has one. Write MT-Bench's format.")
    rows = [
        {
            "dataset": question.category,
            "instruction": instruction_of(question),
            "output": _answer(question, answers).replies[0].strip(),
            "generator": generator,
        }
        for question in questions
    ]
    _write(Path(file), json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def write_arena_hard(
    file: str | Path,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    *,
    model: str,
    tstamp: float | None = None,
) -> None:
    """Write Arena-Hard's model_answer/MODEL.jsonl, in the layout of the questions; `tstamp`: seconds, now if None.

    v0.1's turns are {"content", "token_len"}, the latter where an answer tells its tokens. v2.0's messages end in
    {"content": {"answer"}}; its "metadata" counts another tokenizer's tokens, and their add_markdown_info writes it.
    """

    def row(question: Question, answer: Answer) -> dict[str, Any]:
        if question.layout == ARENA_2:
            return _messages_row(question, answer, model)
        tokens = [{"token_len": tokens} for tokens in answer.tokens] or [{}] * len(answer.replies)
        turns = [{"content": reply.strip(), **own} for reply, own in zip(answer.replies, tokens, strict=True)]
        return _choices_row(question.id, turns, model)

    _write_rows(Path(file), questions, answers, tstamp, row)


def write_mt_bench(
    file: str | Path,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    *,
    model: str,
    tstamp: float | None = None,
) -> None:
    """Write MT-Bench's model_answer/MODEL.jsonl: turns are texts."""

    # Their tools join by the id, and MT-Bench's own are numbers.
    named = {str(number): number for number in (int(q.id) for q in questions if q.id.isdecimal())}

    def row(question: Question, answer: Answer) -> dict[str, Any]:
        return _choices_row(named.get(question.id, question.id), [reply.strip() for reply in answer.replies], model)

    _write_rows(Path(file), questions, answers, tstamp, row)


def _choices_row(id: str | int, turns: list[Any], model: str) -> dict[str, Any]:
    choices = [{"index": 0, "turns": turns}]
    return {"question_id": id, "answer_id": _id_of(model, str(id), turns), "model_id": model, "choices": choices}


def _messages_row(question: Question, answer: Answer, model: str) -> dict[str, Any]:
    prompt = question.prompt
    messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    for asked, reply in zip((None, *question.follow_ups), answer.replies, strict=True):
        messages += [] if asked is None else [{"role": "user", "content": asked}]
        messages.append({"role": "assistant", "content": {"answer": reply.strip()}})
    id = _id_of(model, question.id, list(answer.replies))
    return {"uid": question.id, "ans_id": id, "model": model, "messages": messages}


def _id_of(*answer: Any) -> str:
    """As long as theirs, and the same for the same answer."""
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:22]


def _write_rows(
    file: Path,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    tstamp: float | None,
    row: Callable[[Question, Answer], dict[str, Any]],
) -> None:
    when = {"tstamp": time.time() if tstamp is None else tstamp}
    rows = [row(question, _answer(question, answers)) | when for question in questions]
    _write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _answer(question: Question, answers: Mapping[str, Answer]) -> Answer:
    if question.id not in answers:
        raise DualHeadError(f"There is no answer to '{question.id}'. Write only the questions that were answered.")
    return answers[question.id]


def _write(file: Path, text: str) -> None:
    with atomic_folder(file.parent) as staging:
        (staging / file.name).write_text(text, encoding="utf-8")


# ---- reading ---------------------------------------------------------------------------------------------


def read_answers(file: str | Path) -> Recorded:
    """Read a file of answers in any of the layouts above, gzipped or not.

    A last line that was cut short is left out. Errors: another layout, answers of several models or of several
    decodings, two different answers to one question.
    """
    answers: dict[tuple[str, str], Answer] = {}
    said_by: dict[str, None] = {}
    decodings: dict[str, dict[str, Any] | None] = {}
    for row, where in _rows(Path(file)):
        try:
            name, answer, model, decoding = _read(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DualHeadError(f"{where} is no answer ({type(error).__name__}: {error}). {_FORMS}") from error
        # Our own files are appended to: what was asked again counts.
        if name[0] != "content" and answers.get(name, answer).replies != answer.replies:
            raise DualHeadError(f"{where} is another answer to the question '{name[1][:60]}'. Keep one of them.")
        answers[name] = answer
        said_by[model] = None
        decodings[json.dumps(decoding, sort_keys=True)] = decoding
    if not answers:
        raise DualHeadError(f"There is no answer in '{file}'. {_FORMS}")
    for what, found in (("models", said_by), ("decodings", decodings)):
        if len(found) > 1:
            raise DualHeadError(
                f"'{file}' holds answers of several {what}: {', '.join(list(found)[:3])}. Give a file for each."
            )
    return Recorded(next(iter(said_by)), next(iter(decodings.values())), answers)


def _rows(file: Path) -> Iterator[tuple[Any, str]]:
    """Rows with their places; the last may be None, cut short by a kill, and is then left out."""
    drops = RowReport()
    rows = list(rows_of(str(file), "test", None, drops))
    if rows and rows[-1][0] is None and kind_of(file) == "jsonl" and not drops.notes:
        rows.pop()
    for row, where in rows:
        if row is None:
            notes = "".join(f" {note}." for note in drops.notes)
            raise DualHeadError(f"{where} is no whole JSON, or no whole row of a table.{notes} Copy the file again.")
        if not isinstance(row, dict):
            raise DualHeadError(f"{where} is no answer but {str(row)[:60]}. {_FORMS}")
        if row.keys() >= _ANNOTATED:
            raise DualHeadError(
                f"{where} is an annotation of AlpacaEval, which holds the answers of two: {row.get('generator_1')} and "
                f"{row.get('generator_2')}. Give the model_outputs.json of one. Or write it from this file: "
                "jq '[.[] | {instruction, output: .output_2, generator: .generator_2}]' FILE."
            )
        yield row, where


def _read(row: Any) -> tuple[tuple[str, str], Answer, str, dict[str, Any] | None]:
    """What names the question, the answer, who gave it and how it was decoded."""
    if "replies" in row:
        name = json.dumps([row["prompt"], row.get("follow_ups", [])], ensure_ascii=False, sort_keys=True)
        answer = Answer(
            question=str(row["question"]),
            replies=_texts(row["replies"]),
            tokens=tuple(map(int, row.get("tokens", ()))),
            finished=tuple(map(bool, row.get("finished", ()))),
        )
        return ("content", name), answer, str(row.get("identity", "")), row.get("decoding")
    if "choices" in row:
        question, turns = str(row["question_id"]), row["choices"][0]["turns"]
        replies = _texts([turn["content"] if isinstance(turn, dict) else turn for turn in turns])
        tokens = [turn["token_len"] for turn in turns if isinstance(turn, dict) and "token_len" in turn]
        answer = Answer(question=question, replies=replies, tokens=tuple(tokens) if len(tokens) == len(turns) else ())
        return ("id", question), answer, str(row["model_id"]), None
    if "messages" in row:
        return ("id", str(row["uid"])), _of_messages(row), str(row["model"]), None
    instruction, output = _texts([row["instruction"], row["output"]])
    answer = Answer(question=instruction, replies=(output,))
    return ("instruction", instruction), answer, str(row.get("generator", "")), None


def _of_messages(row: Any) -> Answer:
    """The answer in a row of Arena-Hard 2.0; what a model thought before it, or was told before, is none."""
    said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    replies = _texts([content["answer"] for content in said if isinstance(content, dict)])
    if not replies:
        raise ValueError("no message has an answer")
    metadata = row.get("metadata")
    tokens = [metadata["token_len"]] if isinstance(metadata, dict) and "token_len" in metadata else []
    return Answer(question=str(row["uid"]), replies=replies, tokens=tuple(tokens) if len(replies) == 1 else ())


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r:.60} is no list of texts")
    return tuple(values)
