"""Anthropic HH-RLHF's dialogues up to the last reply."""

from dual_head.evaluate.benchmarks.base import Benchmark, Hub, Row, transcript_prompt
from dual_head.evaluate.types import Question


class HH(Benchmark):
    """The conversation up to the last reply, of {"chosen"} or {"prompt"} transcripts."""

    hub = Hub("Anthropic/hh-rlhf")
    parts = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")

    def question(self, row: Row) -> Question:
        """Read a transcript."""
        return Question("", transcript_prompt(row))


BENCHMARK = HH
