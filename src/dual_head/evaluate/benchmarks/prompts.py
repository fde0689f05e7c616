"""Prompts of your own, from any file."""

from dual_head.data.turns import conversation_of, question_of, system_of
from dual_head.evaluate.benchmarks.base import Benchmark, Row, column_of, require_request
from dual_head.evaluate.types import Question


class Prompts(Benchmark):
    """Lines of text, or {"prompt": text or messages} or {"instruction"}, with "id" and "category" where there are any.

    A system message in a column of its own makes a conversation of a text.
    """

    def question(self, row: Row) -> Question:
        """Read a prompt."""
        prompt = conversation_of(row) if system_of(row) else question_of(row)
        prompt = prompt if isinstance(prompt, str) else require_request(prompt)
        return Question(column_of(row, "id"), prompt, category=str(row.get("category") or ""))


BENCHMARK = Prompts
