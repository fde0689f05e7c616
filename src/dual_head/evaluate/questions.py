"""Benchmarks as questions: from a file, a folder or the hub, all of them or a seeded sample.

Every row that became no question is counted. It knows where rows are and how many are wanted; what a row holds is
`benchmarks`', and nothing here knows of systems, answers or judges.
"""

import fnmatch
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dual_head.data import Dropped, RowReport
from dual_head.data.files import kind_of, rows_of_file
from dual_head.data.sources import rows_of
from dual_head.data.turns import lower_names, notes_of
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.benchmarks.base import BENCHMARKS, Benchmark, Hub, Rows, user_says
from dual_head.evaluate.exchange import read_answers
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
    if name not in BENCHMARKS:
        raise DualHeadError(f"There is no benchmark '{name}'.{did_you_mean(name, BENCHMARKS)}")
    if num_samples is not None and num_samples < 1:
        raise DualHeadError(f"num_samples is at least 1, not {num_samples}. Leave it out for all questions.")
    chosen, drops = BENCHMARKS[name], RowReport()
    file, rows = _rows(chosen, source, num_samples, seed, split, drops)
    questions = _questions(chosen, rows, drops, chat)
    if not questions:
        raise DualHeadError(f"No usable question for '{name}' in '{source or name}'. Check it.\n{drops.table()}")
    if file is not None and chosen.references:
        questions = _with_references(questions, file.parent, chosen.references)
    if num_samples is not None and num_samples > len(questions):
        drops.notes[f"asked for {num_samples} questions; there are {len(questions)}"] += 1
    elif num_samples is not None and num_samples < len(questions):
        drops.notes[f"a random {num_samples} of {len(questions)} questions, seed {seed}"] += 1
        picked = random.Random(f"{name}:{seed}").sample(range(len(questions)), num_samples)
        questions = [questions[i] for i in sorted(picked)]
    return questions, drops


def _questions(chosen: Benchmark, rows: Rows, drops: RowReport, chat: bool | None) -> list[Question]:
    found: dict[str, Question] = {}
    seen: set[str] = set()
    for row, where in rows:
        drops.rows += 1
        row = lower_names(row) if isinstance(row, Mapping) else row
        try:
            question = _question(chosen, row, where, chat)
            content = json.dumps([question.prompt, question.follow_ups])
            if content in seen:
                raise Dropped("duplicate prompt")
            if not question.id:
                question = replace(question, id=hashlib.sha256(content.encode()).hexdigest()[:16])
            if question.id in found:
                raise Dropped("another prompt with this id")
        except Dropped as reason:
            drops.drop(str(reason), where)
            continue
        seen.add(content)
        found[question.id] = question
        drops.notes.update(notes_of(row, question.prompt))
    drops.kept = len(found)
    return list(found.values())


def _question(chosen: Benchmark, row: Any, where: str, chat: bool | None) -> Question:
    if not isinstance(row, Mapping):
        raise Dropped("malformed line" if row is None else "malformed row")
    question = chosen.read(row)
    if not all(text.strip() for text in question.asked):
        raise Dropped("empty prompt")
    part = next((part for part in chosen.parts if part in where), "")
    question = replace(question, category=question.category or part)
    text = isinstance(question.prompt, str)
    if chat is None or chat != text:
        return question
    if chat:
        # The world's own texts are what its chat template writes.
        return replace(question, prompt=user_says(row["text"] if chosen.draw else str(question.prompt)))
    if len(question.prompt) > 1 or question.follow_ups:
        raise DualHeadError(f"A question of '{chosen.name}' is a conversation, which is no plain text. Ask it as chat.")
    return replace(question, prompt=question.asked[0])


def _rows(
    chosen: Benchmark,
    source: str | Path | None,
    num_samples: int | None,
    seed: int,
    split: str | None,
    drops: RowReport,
) -> tuple[Path | None, Rows]:
    """The rows of a benchmark, and the file they are from where it is one."""
    hub = chosen.hub
    if chosen.draw and source is None and split is None:
        return None, chosen.draw(num_samples, seed)
    if chosen.draw:
        raise DualHeadError(f"'{chosen.name}' has no files. Leave source and split out, or ask 'prompts'.")
    if source is None and hub is None:
        raise DualHeadError(f"'{chosen.name}' needs a source: a file, a folder or a data set on the hub.")
    if source is None:
        assert hub is not None
        source = _fetched(hub) if hub.file else hub.name
    wanted = split or (hub.split if hub and str(source) == hub.name else "test")
    path = Path(source).expanduser()
    if path.is_dir() and chosen.files:
        path = _file_in(path, chosen)
    if path.is_file():
        if split:
            drops.notes[f"'{path}' is one file, in which no split '{split}' was looked for"] += 1
        rows = rows_of_file(path, drops)
        if kind_of(path) == "txt":
            rows = ((line, where) for line, where in rows if line is None or line.strip())
        return path, _prompts(rows)
    return None, _prompts(rows_of(str(source), wanted, None, drops))


def _file_in(folder: Path, chosen: Benchmark) -> Path:
    found = sorted({path for pattern in chosen.files.split() for path in folder.glob(pattern)})
    own = [path for path in found if not fnmatch.fnmatch(path.name, chosen.references)]
    if len(own) != 1:
        has = f"has {len(own)} of them: {', '.join(path.name for path in own)}" if own else "has none"
        raise DualHeadError(
            f"'{folder}' should have one file of questions for '{chosen.name}', named like {chosen.files}; it {has}. "
            "Name the file."
        )
    return own[0]


def _fetched(hub: Hub) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(hub.name, hub.file, repo_type="dataset")
    except (OSError, ValueError) as error:
        raise DualHeadError(
            f"Cannot fetch {hub.file} of '{hub.name}': {str(error).splitlines()[0]} Give a copy of it as the source."
        ) from error


def _prompts(rows: Rows) -> Rows:
    """Rows in which a text alone is a prompt."""
    return (({"prompt": row} if isinstance(row, str) else row, where) for row, where in rows)


def _with_references(questions: Sequence[Question], folder: Path, pattern: str) -> list[Question]:
    """Give questions the good answers of a file beside theirs, which counts more than what rows say."""
    found = sorted(folder.glob(pattern))
    known = read_answers(found[-1]) if found else None
    answers = [known.of(question) if known else None for question in questions]
    return [
        replace(question, references=answer.replies) if answer and answer.replies else question
        for question, answer in zip(questions, answers, strict=True)
    ]
