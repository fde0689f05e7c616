"""Requests to refuse or to grant, of XSTest and others."""

from dual_head.data.turns import conversation_of
from dual_head.evaluate.benchmarks.base import (
    Benchmark,
    Hub,
    Row,
    column_of,
    harm_of,
    require_request,
    transcript_prompt,
)
from dual_head.evaluate.types import Question


class Safety(Benchmark):
    """XSTest's, PKU-SafeRLHF's or AdvBench's prompts, or HH's harmless transcripts.

    category: "harmful" or "harmless", where one of these columns says it: "harmful",
    "is_harmful", "safe", "is_safe" (true or false), or "label", "category", "type" with a word such as "unsafe".
    """

    hub = Hub("natolambert/xstest-v2-copy", "prompts")

    def question(self, row: Row) -> Question:
        """Read a prompt or a transcript."""
        if isinstance(row.get("chosen"), str):
            return Question("", transcript_prompt(row), category=harm_of(row))
        return Question(column_of(row, "id"), require_request(conversation_of(row)), category=harm_of(row))


BENCHMARK = Safety
