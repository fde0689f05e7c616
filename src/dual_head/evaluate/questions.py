"""Benchmarks as questions: from a file, a folder or the hub, all of them or a seeded sample.

Every row that is no question is counted. Where rows are and what they hold is the benchmark's.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dual_head.data import Dropped, RowReport
from dual_head.data.turns import lower_names, notes_of, require_no_images
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks import Benchmark, load_benchmark
from dual_head.evaluate.benchmarks.base import Rows
from dual_head.evaluate.types import Question

__all__ = ["load_questions"]


def load_questions(
    name: str,
    source: str | Path | None = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    split: str | None = None,
    chat: bool | None = None,
) -> tuple[list[Question], RowReport]:
    """Read a benchmark's questions, or a seeded random `num_samples` of them in their own order.

    source: a file, a folder or a hub name; None for where it is published. split: of a folder or hub data set that
    has several; None for the published one, or "test". chat: True makes texts a user's message, False makes single
    messages plain texts; None leaves each as its benchmark has it. A prompt or an id that was there before is dropped
    and counted. Errors: an unknown benchmark or source, no question left.
    """
    benchmark, report = load_benchmark(name), RowReport()
    if num_samples is not None and num_samples < 1:
        raise DualHeadError(f"num_samples must be at least 1, not {num_samples}. Leave it out for all questions.")
    file, rows = benchmark.rows(source, split, num_samples, seed, report)
    questions = _questions(benchmark, rows, report, chat)
    if not questions:
        raise DualHeadError(f"No usable question for '{name}' in '{source or name}'. Check it.\n{report.table()}")
    if file is not None:
        questions = benchmark.references(questions, file.parent)
    if num_samples is not None and num_samples > len(questions):
        report.notes[f"asked for {num_samples} questions; there are {len(questions)}"] += 1
    elif num_samples is not None and num_samples < len(questions):
        report.notes[f"a random {num_samples} of {len(questions)} questions, seed {seed}"] += 1
        places = random.Random(f"{name}:{seed}").sample(range(len(questions)), num_samples)
        questions = [questions[i] for i in sorted(places)]
    return questions, report


def _questions(benchmark: Benchmark, rows: Rows, report: RowReport, chat: bool | None) -> list[Question]:
    questions: dict[str, Question] = {}
    contents: set[str] = set()
    for row, where in rows:
        report.rows += 1
        row = lower_names(row) if isinstance(row, Mapping) else row
        try:
            question = _question(benchmark, row, where, chat)
            content = json.dumps([question.prompt, question.follow_ups])
            if content in contents:
                raise Dropped("duplicate prompt")
            if not question.id:
                question = replace(question, id=hashlib.sha256(content.encode()).hexdigest()[:16])
            if question.id in questions:
                raise Dropped("another prompt with this id")
        except Dropped as reason:
            report.drop(str(reason), where)
            continue
        contents.add(content)
        questions[question.id] = question
        report.notes.update(notes_of(row, question.prompt))
    report.kept = len(questions)
    return list(questions.values())


def _question(benchmark: Benchmark, row: Any, where: str, chat: bool | None) -> Question:
    if not isinstance(row, Mapping):
        raise Dropped("malformed line" if row is None else "malformed row")
    require_no_images(row, where)
    question = benchmark.question(row)
    if not all(text.strip() for text in question.asked):
        raise Dropped("empty prompt")
    part = next((part for part in benchmark.parts if part in where), "")
    question = replace(question, category=question.category or part)
    is_text = isinstance(question.prompt, str)
    if chat is None or chat != is_text:
        return question
    if chat:
        return replace(question, prompt=benchmark.as_chat(question, row))
    if len(question.prompt) > 1 or question.follow_ups:
        raise DualHeadError(
            f"A question of '{benchmark.name}' is a conversation, which cannot be asked as plain text. Ask it as chat."
        )
    return replace(question, prompt=question.asked[0])
