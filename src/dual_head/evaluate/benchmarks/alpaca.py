"""AlpacaEval's instructions."""

from typing import Any

from dual_head.data.turns import text
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks.base import Benchmark, Hub, Row, user_message
from dual_head.evaluate.exchange import instruction_of
from dual_head.evaluate.types import Answer, Question


class Alpaca(Benchmark):
    """{"instruction", "dataset"}; files of model outputs hold them too."""

    hub = Hub("tatsu-lab/alpaca_eval", file="alpaca_eval.json")
    files = "*alpaca_eval.json *outputs.json*"
    export = "alpaca_eval/{}.json"

    def question(self, row: Row) -> Question:
        """Read an instruction."""
        return Question("", user_message(text(row.get("instruction"))), category=str(row.get("dataset") or ""))

    def export_row(self, question: Question, answer: Answer, system: str) -> dict[str, Any]:
        """A row that `alpaca_eval --model_outputs` reads. Errors: a second turn, which AlpacaEval does not have."""
        if question.follow_ups:
            raise DualHeadError(f"AlpacaEval has no second turn, and '{question.id}' has one. Write MT-Bench's format.")
        return {
            "dataset": question.category,
            "instruction": instruction_of(question),
            "output": answer.replies[0].strip(),
            "generator": system,
        }


BENCHMARK = Alpaca
