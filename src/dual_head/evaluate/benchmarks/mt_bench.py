"""MT-Bench's questions of two turns, graded by turn and category."""

from typing import Any

from dual_head.evaluate.benchmarks.base import Benchmark, Hub, Row, column_of, texts_of, user_message
from dual_head.evaluate.exchange import choices_row
from dual_head.evaluate.types import Answer, Question

WITH_REFERENCE = ("math", "reasoning", "coding")  # categories in which judges are shown a reference


class MTBench(Benchmark):
    """{"question_id", "category", "turns": [first, second]}, and "reference" where judges are shown one."""

    hub = Hub("HuggingFaceH4/mt_bench_prompts", "train")
    files = "*question*.jsonl*"
    reference_files = "reference_answer*.jsonl*"
    graded = True
    export = "mt_bench/{}.jsonl"

    def question(self, row: Row) -> Question:
        """Read both turns."""
        first, *rest = texts_of(row.get("turns") or row.get("prompt"))
        category = str(row.get("category") or "")
        replies = row.get("reference") if category in WITH_REFERENCE else None
        references = tuple(texts_of(replies)) if replies else ()
        id = column_of(row, "question_id", "prompt_id")
        return Question(id, user_message(first), tuple(rest), category=category, references=references)

    def export_row(self, question: Question, answer: Answer, system: str) -> dict[str, Any]:
        """A row of MT-Bench's model_answer/MODEL.jsonl."""
        # MT-Bench's tools join by the id, and its own ids are numbers.
        is_number = question.id.isdecimal() and str(int(question.id)) == question.id
        id = int(question.id) if is_number else question.id
        return choices_row(id, [reply.strip() for reply in answer.replies], system)


BENCHMARK = MTBench
