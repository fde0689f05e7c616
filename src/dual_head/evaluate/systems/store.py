"""Answers that are stored: no answer is generated twice, and only like is compared with like.

An answer is stored under all that it depends on, so that a changed model, strength, prompt or decoding is asked anew.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dual_head.backbone.fingerprint import digest
from dual_head.errors import DualHeadError
from dual_head.evaluate.exchange import content_of
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.types import Answer, Decoding, Question
from dual_head.files.lines import add_lines, rows_by_key

__all__ = ["answer_all", "answers_file", "require_comparable", "require_same_decoding"]

VERSION = 1  # raised when the same key would stand for other replies
EXAMPLES = 3

Progress = Callable[[int, int], None]  # questions done, questions in all


def answers_file(folder: str | Path, system: System) -> Path:
    """Where the answers of a system are kept."""
    return Path(folder) / f"{system.name}.jsonl"


def answer_all(
    system: System,
    questions: Sequence[Question],
    decoding: Decoding,
    folder: str | Path,
    *,
    batch_size: int = 16,
    on_progress: Progress | None = None,
) -> dict[str, Answer]:
    """Have a system answer every question, and keep each batch in folder/NAME.jsonl as soon as it is there.

    {question id: answer}, in the questions' order, of those that it has an answer to. Batches depend on the questions
    alone, longest first: one that is whole in the file is read, any other is asked whole, so that a run that was
    stopped ends like one that was not. An endpoint answers each question by itself, and is asked what is not there.
    Errors: two questions of one id, a folder that cannot be written.
    """
    if batch_size < 1:
        raise DualHeadError(f"batch_size must be at least 1, not {batch_size}.")
    if len({question.id for question in questions}) < len(questions):
        raise DualHeadError("Two questions have the same id. Give each an id of its own.")
    system.check(decoding)
    if system.stored:
        return {answer.question: answer for answer in system.answer(questions, decoding)}
    file = answers_file(folder, system)
    stored, answers, done = rows_by_key(file, _answer), {}, 0
    for batch in _batches(questions, max(batch_size, system.at_once)):
        keys = dict(zip((q.id for q in batch), _keys(system.identity, batch, decoding), strict=True))
        rest = [question for question in batch if keys[question.id] not in stored]
        if rest:
            part = rest if system.remote else batch
            replies: dict[str, Answer] = {}
            try:
                for answer in system.answer(part, decoding):
                    replies[answer.question] = answer
            finally:
                kept = [question for question in part if question.id in replies]
                _append(file, system, kept, keys, replies, decoding)
            stored |= {keys[question.id]: replies[question.id] for question in kept}
        for question in batch:
            if keys[question.id] in stored:
                answers[question.id] = replace(stored[keys[question.id]], question=question.id)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(questions))
    return {question.id: answers[question.id] for question in questions if question.id in answers}


def _batches(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Questions of like length together, to pad little; the longest first, so that too little memory shows at once."""
    # By content rather than by id, which another benchmark may give otherwise.
    pairs = sorted(((content_of(question), question) for question in questions), key=lambda x: (-len(x[0]), x[0]))
    return [[question for _, question in pairs[i : i + size]] for i in range(0, len(pairs), size)]


def _keys(identity: str, batch: Sequence[Question], decoding: Decoding) -> list[str]:
    """Name each answer by all that it depends on; what is drawn depends on the whole batch, which shares a seed."""
    contents = [content_of(question) for question in batch]
    batch_contents = contents if decoding.temperature else None
    return [digest([VERSION, identity, _settings(decoding), content, batch_contents]) for content in contents]


def _settings(decoding: Decoding) -> dict[str, float]:
    """The settings that replies depend on: greedy ones on few."""
    settings = asdict(decoding)
    return settings if decoding.temperature else {name: settings[name] for name in ("max_new_tokens", "temperature")}


# ---- the file --------------------------------------------------------------------------------------------


def _append(
    file: Path,
    system: System,
    questions: Sequence[Question],
    keys: Mapping[str, str],
    answers: Mapping[str, Answer],
    decoding: Decoding,
) -> None:
    rows = [
        {
            "key": keys[question.id],
            "identity": system.identity,
            "decoding": _settings(decoding),
            "question": question.id,
            "prompt": question.prompt,
            "follow_ups": question.follow_ups,
            "replies": answers[question.id].replies,
            "tokens": answers[question.id].tokens,
            "finished": answers[question.id].finished,
        }
        for question in questions
    ]
    add_lines(file, [json.dumps(row, ensure_ascii=False) for row in rows])


def _answer(row: Any) -> Answer:
    parts = {name: tuple(row[name]) for name in ("replies", "tokens", "finished")}
    return Answer(question=row["question"], **parts)


# ---- like with like --------------------------------------------------------------------------------------


def require_comparable(
    questions: Sequence[Question], answers: Mapping[str, Mapping[str, Answer]], *, allow_missing: bool = False
) -> tuple[list[Question], dict[str, dict[str, Answer]]]:
    """Return the questions that every system answered in every turn, and those answers, by system and question.

    answers: {system: {question id: answer}}. An empty reply is an answer. Errors: a system that lacks some, unless
    `allow_missing` leaves such questions out for all; no question that all have answered.
    """
    gaps_of = {
        name: [question.id for question in questions if not _is_whole(question, system.get(question.id))]
        for name, system in answers.items()
    }
    gaps_of = {name: ids for name, ids in gaps_of.items() if ids}
    gaps = "; ".join(
        f"'{name}' lacks {len(ids)} of {len(questions)} ({', '.join(ids[:EXAMPLES])}{', ...' * (len(ids) > EXAMPLES)})"
        for name, ids in gaps_of.items()
    )
    if gaps_of and not allow_missing:
        raise DualHeadError(
            f"Systems are compared on the same questions only, and {gaps}. Complete the answers, or leave those "
            "questions out for every system with allow_missing (--allow_missing)."
        )
    ids = {id for names in gaps_of.values() for id in names}
    shared = [question for question in questions if question.id not in ids]
    if not shared:
        raise DualHeadError(f"No question was answered by every system: {gaps or 'none was asked'}.")
    return shared, {name: {question.id: system[question.id] for question in shared} for name, system in answers.items()}


def _is_whole(question: Question, answer: Answer | None) -> bool:
    return answer is not None and len(answer.replies) == len(question.asked)


def require_same_decoding(systems: Sequence[System], decoding: Decoding, *, force: bool = False) -> list[str]:
    """Say which files of answers were decoded otherwise than `decoding`, or in a way they do not tell.

    Errors: one that was decoded otherwise, unless `force`. What greedy decoding does not depend on is not compared.
    """
    notes = []
    for system in systems:
        if not system.stored:
            continue
        if system.recorded is None:
            notes.append(f"'{system.path}' does not say how its answers were decoded")
            continue
        settings = _settings(decoding)
        names = [name for name in settings if system.recorded.get(name, settings[name]) != settings[name]]
        if not names:
            continue
        differences = ", ".join(f"{name} {system.recorded[name]} there and {settings[name]} here" for name in names)
        notes.append(f"'{system.path}' was decoded otherwise: {differences}")
        if not force:
            raise DualHeadError(
                f"{notes[-1]}. Systems are compared under the same decoding: use the same settings, or force it."
            )
    return notes
