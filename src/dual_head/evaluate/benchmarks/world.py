"""Requests of the demonstration world."""

from pathlib import Path

from dual_head.data import Message, RowReport
from dual_head.demo.world import all_requests, is_refusal, sample_requests
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks.base import Benchmark, Row, Rows, harm_of, user_message
from dual_head.evaluate.types import Question


class World(Benchmark):
    """Distinct requests of the test split, drawn as the world's own measurements draw them; its rule is exact."""

    drawn = True
    rule = "rule"

    def question(self, row: Row) -> Question:
        """Read a request."""
        return Question("", row["prompt"], category=harm_of(row))

    def as_chat(self, question: Question, row: Row) -> tuple[Message, ...]:
        """The world's own texts are what its chat template writes."""
        del question
        return user_message(row["text"])

    def refuses(self, reply: str) -> bool:
        """The world has its own way to refuse."""
        return is_refusal(reply)

    def rows(
        self, source: str | Path | None, split: str | None, num_samples: int | None, seed: int, report: RowReport
    ) -> tuple[Path | None, Rows]:
        """Draw requests; the first of more draws are the same, so that more questions hold those of fewer."""
        del report
        if source is not None or split is not None:
            raise DualHeadError(f"'{self.name}' has no files. Leave source and split out, or ask 'prompts'.")
        return None, _rows(num_samples, seed)


def _rows(num_samples: int | None, seed: int) -> Rows:
    requests = list(dict.fromkeys(all_requests("test")))
    if num_samples is not None and num_samples > len(requests):
        raise DualHeadError(
            f"The world has {len(requests)} requests for testing, fewer than {num_samples}. Ask for less."
        )
    if num_samples is not None:
        draws, requests = num_samples, []
        while len(requests) < num_samples:
            requests = list(dict.fromkeys(sample_requests(draws, seed=seed, split="test")))[:num_samples]
            draws *= 2
    for number, request in enumerate(requests, 1):
        row = {"prompt": request.prompt, "text": request.text, "harmful": request.harmful}
        yield row, f"request {number}"


BENCHMARK = World
