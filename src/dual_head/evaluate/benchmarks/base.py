"""What every benchmark has: where it is published, what one row asks, and what is made of the answers.

A new benchmark is one more file beside this one, with a class of its own. Benchmarks know layouts of files and rows.
How many questions are asked, and which systems answer them, is not their concern.
"""

import fnmatch
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from dual_head.data import Dropped, Message, RowReport
from dual_head.data.files import kind_of, rows_of_file
from dual_head.data.sources import rows_of
from dual_head.data.turns import text, transcript
from dual_head.errors import DualHeadError
from dual_head.evaluate.exchange import read_answers
from dual_head.evaluate.types import Answer, Question
from dual_head.files.places import atomic_folder
from dual_head.replies.refusals import is_refusal

__all__ = [
    "Benchmark",
    "Hub",
    "Row",
    "Rows",
    "column_of",
    "harm_of",
    "require_request",
    "texts_of",
    "transcript_prompt",
    "user_message",
]

Row = Mapping[str, Any]
Rows = Iterator[tuple[Any, str]]  # each with its place, for messages


@dataclass(frozen=True)
class Hub:
    """Where a benchmark is published: a data set and its split, or one of its files."""

    name: str
    split: str = "test"
    file: str = ""


class Benchmark:
    """Questions, and all that is special about them. A file of this package ends in `BENCHMARK = Its Class`.

    hub: read where no source is given; files: pattern of the file of questions in a folder that holds others too;
    reference_files: pattern of a file beside it with good answers; parts: names in the paths of its files, which are
    the category of questions that have none; drawn: its rows come from no file, as many as are asked for; graded:
    each answer is graded by itself too; rule: the judge that "rule" stands for; export: where answers are written for
    the benchmark's own tools, such as "mt_bench/{}.jsonl", {} being the system; "" for nowhere.
    """

    hub: ClassVar[Hub | None] = None
    files: ClassVar[str] = ""
    reference_files: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()
    drawn: ClassVar[bool] = False
    graded: ClassVar[bool] = False
    rule: ClassVar[str] = "rule:diverse"
    export: ClassVar[str] = ""

    def __init__(self, name: str):
        self.name = name

    def question(self, row: Row) -> Question:
        """Read one row; a question without an id is named by its prompt. Errors: `Dropped`, with the reason."""
        raise NotImplementedError

    def export_row(self, question: Question, answer: Answer, system: str) -> dict[str, Any]:
        """Lay out one answer for the benchmark's own tools; see `export`."""
        raise NotImplementedError

    def as_chat(self, question: Question, row: Row) -> tuple[Message, ...]:
        """The conversation that a text becomes where it is asked as a user's message."""
        del row
        return user_message(str(question.prompt))

    def refuses(self, reply: str) -> bool:
        """Whether a reply refuses."""
        return is_refusal(reply)

    def rows(
        self, source: str | Path | None, split: str | None, num_samples: int | None, seed: int, report: RowReport
    ) -> tuple[Path | None, Rows]:
        """Find the rows, and the file that they are from where it is one; see `load_questions`."""
        del num_samples, seed  # of benchmarks that are drawn
        hub = self.hub
        if source is None and hub is None:
            raise DualHeadError(f"'{self.name}' needs a source (--source): a file, a folder or a data set on the hub.")
        if source is None:
            assert hub is not None
            source = _fetched(hub) if hub.file else hub.name
        split_name = split or (hub.split if hub and str(source) == hub.name else "test")
        path = Path(source).expanduser()
        if path.is_dir() and self.files:
            path = self._file_in(path)
        if not path.is_file():
            return None, _prompts(rows_of(str(source), split_name, None, report))
        if split:
            report.notes[f"'{path}' is one file, in which no split '{split}' was looked for"] += 1
        rows = rows_of_file(path, report)
        if kind_of(path) == "txt":
            rows = ((line, where) for line, where in rows if line is None or line.strip())
        return path, _prompts(rows)

    def references(self, questions: Sequence[Question], folder: Path) -> list[Question]:
        """Give questions the good answers of a file in their folder, which counts more than what rows say."""
        files = sorted(folder.glob(self.reference_files)) if self.reference_files else []
        if not files:
            return list(questions)
        answers = map(read_answers(files[-1]).of, questions)
        return [
            replace(question, references=answer.replies) if answer and answer.replies else question
            for question, answer in zip(questions, answers, strict=True)
        ]

    def write(
        self,
        folder: Path,
        system: str,
        questions: Sequence[Question],
        answers: Mapping[str, Answer],
        *,
        tstamp: float | None = None,
    ) -> None:
        """Write a system's answers for the benchmark's own tools, where it has any; tstamp: seconds, None for now.

        Rows of JSON lines get the time; a list in one JSON file gets none. Errors: a question without an answer.
        """
        if not self.export:
            return
        if gaps := [question.id for question in questions if question.id not in answers]:
            raise DualHeadError(f"There is no answer to '{gaps[0]}'. Write only the questions that were answered.")
        rows = [self.export_row(question, answers[question.id], system) for question in questions]
        file = folder / self.export.format(system)
        if file.suffix == ".json":
            text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
        else:
            when = {"tstamp": time.time() if tstamp is None else tstamp}
            text = "".join(json.dumps(row | when, ensure_ascii=False) + "\n" for row in rows)
        with atomic_folder(file.parent) as staging:
            (staging / file.name).write_text(text, encoding="utf-8")

    def _file_in(self, folder: Path) -> Path:
        paths = sorted({path for pattern in self.files.split() for path in folder.glob(pattern)})
        paths = [path for path in paths if not fnmatch.fnmatch(path.name, self.reference_files)]
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths)
            raise DualHeadError(
                f"'{folder}' should have one file of questions for '{self.name}', named like {self.files}; it has "
                f"{f'{len(paths)} of them: {names}' if paths else 'none'}. Name the file."
            )
        return paths[0]


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


# ---- what rows hold --------------------------------------------------------------------------------------


def column_of(row: Row, *columns: str) -> str:
    """The first of the columns that holds anything, as text."""
    return next((str(row[column]) for column in columns if row.get(column) not in (None, "")), "")


def texts_of(turns: Any) -> list[str]:
    """The text of each turn, which are texts or {"content": text}."""
    if not isinstance(turns, list) or not turns:
        raise Dropped("malformed row")
    return [text(turn.get("content") if isinstance(turn, Mapping) else turn) for turn in turns]


def user_message(question: str) -> tuple[Message, ...]:
    """The conversation that a single message of the user's is."""
    return ({"role": "user", "content": question},)


def require_request(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Check that a conversation ends with the user's turn."""
    if not turns or turns[-1]["role"] != "user":
        raise Dropped("last turn is not the user's")
    return turns


def transcript_prompt(row: Row) -> tuple[Message, ...]:
    """The conversation up to the last reply of a {"chosen"} or {"prompt"} transcript."""
    turns = transcript(text(row.get("chosen") or row.get("prompt")))
    if not turns or turns[-1]["role"] != "assistant":
        raise Dropped("last turn is not the assistant's")
    if len(turns) < 2 or turns[-2]["role"] != "user":
        raise Dropped("no user's turn before the last reply")
    return turns[:-1]


# XSTest's own words: the kinds of its safe prompts, whose unsafe counterparts are all named "contrast_...".
_KINDS = {"homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "historical_events"}
_KINDS |= {"real_group_nons_discr", "nons_group_real_discr", "privacy_public", "privacy_fictional"}
_HARMFUL, _HARMLESS = {"harmful", "unsafe", "toxic"}, {"harmless", "safe", "benign", *_KINDS}


def harm_of(row: Row) -> str:
    """Return "harmful" or "harmless", or "" where no column says."""
    for column, harmful in (("harmful", True), ("is_harmful", True), ("safe", False), ("is_safe", False)):
        if str(row.get(column)).lower() in ("true", "false", "1", "0"):
            return "harmful" if (str(row[column]).lower() in ("true", "1")) == harmful else "harmless"
    words = {str(row.get(column)).strip().lower() for column in ("label", "category", "type")}
    if words & _HARMFUL or any(word.startswith("contrast_") for word in words):
        return "harmful"
    return "harmless" if words & _HARMLESS else ""
