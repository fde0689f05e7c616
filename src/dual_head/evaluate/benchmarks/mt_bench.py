"""MT-Bench's questions of two turns, graded by turn and category."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_head.evaluate.benchmarks.base import Benchmark, Hub, Row, column_of, texts_of, user_message
from dual_head.evaluate.exchange import choices_row, write_rows
from dual_head.evaluate.types import Answer, Question

WITH_REFERENCE = ("math", "reasoning", "coding")  # categories in which judges are shown a reference


class MTBench(Benchmark):
    """{"question_id", "category", "turns": [first, second]}, and "reference" where judges are shown one."""

    hub = Hub("HuggingFaceH4/mt_bench_prompts", "train")
    files = "*question*.jsonl*"
    reference_files = "reference_answer*.jsonl*"
    graded = True

    def question(self, row: Row) -> Question:
        """Read both turns."""
        first, *rest = texts_of(row.get("turns") or row.get("prompt"))
        category = str(row.get("category") or "")
        shown = row.get("reference") if category in WITH_REFERENCE else None
        references = tuple(texts_of(shown)) if shown else ()
        id = column_of(row, "question_id", "prompt_id")
        return Question(id, user_message(first), tuple(rest), category=category, references=references)

    def write(self, folder: Path, system: str, questions: Sequence[Question], answers: Mapping[str, Answer]) -> None:
        """Write MT-Bench's model_answer/MODEL.jsonl."""
        write_mt_bench(folder / "mt_bench" / f"{system}.jsonl", questions, answers, model=system)


def write_mt_bench(
    file: str | Path,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    *,
    model: str,
    tstamp: float | None = None,
) -> None:
    """Write MT-Bench's model_answer/MODEL.jsonl: turns are texts; `tstamp`: seconds, now if None."""
    # Their tools join by the id, and MT-Bench's own are numbers.
    numbers = {str(number): number for number in (int(q.id) for q in questions if q.id.isdecimal())}

    def row(question: Question, answer: Answer) -> dict[str, Any]:
        return choices_row(numbers.get(question.id, question.id), [reply.strip() for reply in answer.replies], model)

    write_rows(Path(file), questions, answers, tstamp, row)


BENCHMARK = MTBench
