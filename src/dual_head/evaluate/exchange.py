"""Answers in the files of other tools: AlpacaEval's outputs, Arena-Hard's and MT-Bench's answers, and our own.

A file that another tool wrote can be compared as a system. This module knows layouts of files, and no model or judge.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dual_head.data import RowReport
from dual_head.data.files import kind_of
from dual_head.data.sources import rows_of
from dual_head.errors import DualHeadError
from dual_head.evaluate.types import Answer, Question

__all__ = ["Recorded", "answer_id", "choices_row", "content_of", "instruction_of", "read_answers"]

_FORMS = (
    'A file of answers is AlpacaEval\'s JSON ("instruction", "output"), the JSONL of Arena-Hard or MT-Bench '
    '("question_id", "choices", or "uid", "messages"), or a file of our own ("prompt", "replies").'
)
_ANNOTATED = {"instruction", "output_1", "output_2"}  # the columns of AlpacaEval's annotations.json
_SPEAKERS = {"system": "", "user": "Human: ", "assistant": "Assistant: "}


@dataclass(frozen=True)
class Recorded:
    """The answers in a file: the model, the decoding where the file says so, and each answer by its name.

    answers: by ("id", question id), ("instruction", text) or ("content", prompt and follow-ups as JSON).
    """

    model: str = ""
    decoding: dict[str, Any] | None = None
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def of(self, question: Question) -> Answer | None:
        """Look up the answer to a question, under its id; None where there is none."""
        names = (("content", content_of(question)), ("instruction", instruction_of(question)), ("id", question.id))
        answer = next((self.answers[name] for name in names if name in self.answers), None)
        return answer and replace(answer, question=question.id)


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


def choices_row(id: str | int, turns: list[Any], model: str) -> dict[str, Any]:
    """One answer as Arena-Hard 0.1 and MT-Bench lay it out."""
    choices = [{"index": 0, "turns": turns}]
    return {"question_id": id, "answer_id": answer_id(model, str(id), turns), "model_id": model, "choices": choices}


def answer_id(*answer: Any) -> str:
    """An id as long as FastChat's; equal answers have equal ids."""
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:22]


# ---- reading ---------------------------------------------------------------------------------------------


def read_answers(file: str | Path) -> Recorded:
    """Read a file of answers in any of the layouts above, gzipped or not.

    A last line that was cut short is left out. Errors: another layout, answers of several models or of several
    decodings, two different answers to one question.
    """
    answers: dict[tuple[str, str], Answer] = {}
    models: dict[str, None] = {}
    decodings: dict[str, dict[str, Any] | None] = {}
    for row, where in _rows(Path(file)):
        try:
            name, answer, model, decoding = _parse(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DualHeadError(f"{where} is not an answer ({type(error).__name__}: {error}). {_FORMS}") from error
        # Our own files are appended to: the later answer counts.
        if name[0] != "content" and answers.get(name, answer).replies != answer.replies:
            raise DualHeadError(f"{where} is another answer to the question '{name[1][:60]}'. Keep one of them.")
        answers[name] = answer
        models[model] = None
        decodings[json.dumps(decoding, sort_keys=True)] = decoding
    if not answers:
        raise DualHeadError(f"There is no answer in '{file}'. {_FORMS}")
    for noun, names in (("models", models), ("decodings", decodings)):
        if len(names) > 1:
            raise DualHeadError(
                f"'{file}' holds answers of several {noun}: {', '.join(list(names)[:3])}. Give a file for each."
            )
    return Recorded(next(iter(models)), next(iter(decodings.values())), answers)


def _rows(file: Path) -> Iterator[tuple[Any, str]]:
    """Rows with their places; the last may be None, cut short by a kill, and is then left out."""
    drops = RowReport()
    rows = list(rows_of(str(file), "test", None, drops))
    if rows and rows[-1][0] is None and kind_of(file) == "jsonl" and not drops.notes:
        rows.pop()
    for row, where in rows:
        if row is None:
            notes = "".join(f" {note}." for note in drops.notes)
            raise DualHeadError(
                f"{where} is not whole JSON, or not a whole row of a table.{notes} Copy the file again."
            )
        if not isinstance(row, dict):
            raise DualHeadError(f"{where} is not an answer but {str(row)[:60]}. {_FORMS}")
        if row.keys() >= _ANNOTATED:
            raise DualHeadError(
                f"{where} is an annotation of AlpacaEval, which holds the answers of two: {row.get('generator_1')} and "
                f"{row.get('generator_2')}. Give the model_outputs.json of one. Or write it from this file: "
                "jq '[.[] | {instruction, output: .output_2, generator: .generator_2}]' FILE."
            )
        yield row, where


def _parse(row: Any) -> tuple[tuple[str, str], Answer, str, dict[str, Any] | None]:
    """The question's name, the answer, the model that gave it and how it was decoded."""
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
    """The answer in a row of Arena-Hard 2.0, without thoughts and earlier turns."""
    contents = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    replies = _texts([content["answer"] for content in contents if isinstance(content, dict)])
    if not replies:
        raise ValueError("no message has an answer")
    metadata = row.get("metadata")
    tokens = [metadata["token_len"]] if isinstance(metadata, dict) and "token_len" in metadata else []
    return Answer(question=str(row["uid"]), replies=replies, tokens=tuple(tokens) if len(replies) == 1 else ())


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r:.60} is not a list of texts")
    return tuple(values)
