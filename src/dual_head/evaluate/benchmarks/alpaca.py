"""AlpacaEval's instructions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dual_head.data.turns import text
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks.base import Benchmark, Hub, Row, user_message
from dual_head.evaluate.exchange import answer_to, instruction_of, write_text
from dual_head.evaluate.types import Answer, Question


class Alpaca(Benchmark):
    """{"instruction", "dataset"}; anyone's model outputs hold them too."""

    hub = Hub("tatsu-lab/alpaca_eval", file="alpaca_eval.json")
    files = "*alpaca_eval.json *outputs.json*"

    def question(self, row: Row) -> Question:
        """Read an instruction."""
        return Question("", user_message(text(row.get("instruction"))), category=str(row.get("dataset") or ""))

    def write(self, folder: Path, system: str, questions: Sequence[Question], answers: Mapping[str, Answer]) -> None:
        """Write what `alpaca_eval --model_outputs` reads."""
        write_alpaca_eval(folder / "alpaca_eval" / f"{system}.json", questions, answers, generator=system)


def write_alpaca_eval(
    file: str | Path, questions: Sequence[Question], answers: Mapping[str, Answer], *, generator: str
) -> None:
    """Write what `alpaca_eval --model_outputs` reads: [{"dataset", "instruction", "output", "generator"}].

    Spaces around an output go. Errors: a question of several turns, which AlpacaEval has not; one without an answer.
    """
    for question in questions:
        if question.follow_ups:
            raise DualHeadError(f"AlpacaEval has no second turn, and '{question.id}' has one. Write MT-Bench's format.")
    rows = [
        {
            "dataset": question.category,
            "instruction": instruction_of(question),
            "output": answer_to(question, answers).replies[0].strip(),
            "generator": generator,
        }
        for question in questions
    ]
    write_text(Path(file), json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


BENCHMARK = Alpaca
