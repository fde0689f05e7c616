"""Systems: whoever answers questions, be it guides at a strength, a plain model, an adapter, or a file of answers.

What a system is can be told without loading it, so that answers that were kept need no model. It knows that systems
are asked and may be too small for a question; nothing of how a model replies, of what is kept, or of judges.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dual_head.data import RowReport
from dual_head.errors import DualHeadError
from dual_head.evaluate.exchange import read_answers
from dual_head.evaluate.systems.identity import file_sha256, kind_of
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.systems.specs import SystemSpec, parse_systems
from dual_head.evaluate.types import Answer, Decoding, Question

__all__ = ["ModelSystem", "RecordedSystem", "System", "SystemSpec", "fits", "open_system", "parse_systems"]


@runtime_checkable
class System(Protocol):
    """Whoever answers.

    name: as tables show it; path: where it is; alpha: the strength of each guide, {} where there are none;
    identity: all that its replies depend on beside question and decoding (and but for rounding); recorded: how its
    answers were decoded, where they were given before and this is known.
    """

    name: str
    path: str
    alpha: Mapping[str, float]
    recorded: Mapping[str, Any] | None

    @property
    def identity(self) -> str:
        """Sixty-four hexadecimal digits, the same for the same files wherever they are."""
        ...

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """Say why it cannot be asked this with room for its replies; None where it can."""
        ...

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Answer one batch, turn by turn, in its order; a file leaves out what it does not hold."""
        ...

    def release(self) -> None:
        """Let go of the model, if there is one; it is loaded again when it is needed."""
        ...


def open_system(
    spec: SystemSpec, *, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> System:
    """Find the system of a spec; its model is loaded when it is first asked. Errors: none there, a wrong alpha."""
    if (kind := kind_of(spec.path)) == "answers":
        return RecordedSystem(spec)
    return ModelSystem(spec, kind, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def fits(
    questions: Sequence[Question], systems: Sequence[System], decoding: Decoding, *, wanted: int | None = None
) -> tuple[list[Question], RowReport]:
    """Keep the questions that every system can be asked, with room for replies of full length; count the others.

    wanted: how many are enough; those after them are not looked at. Errors: none is left.
    """
    kept, drops = [], RowReport(rows=len(questions))
    for question in questions:
        if len(kept) == wanted:
            break
        found = (system.why_not(question, decoding) for system in systems)
        reason = next((why for why in found if why), None)
        if reason is None:
            kept.append(question)
        else:
            drops.drop(reason, question.id)
    drops.kept = len(kept)
    if not kept:
        raise DualHeadError(
            "No question is left that every system can be asked. Ask shorter ones, lower max_new_tokens "
            f"({decoding.max_new_tokens}), or leave a system out.\n{drops.table()}"
        )
    return kept, drops


class RecordedSystem:
    """A file of answers, which can only be looked up."""

    def __init__(self, spec: SystemSpec):
        if spec.alpha is not None:
            raise DualHeadError(f"'{spec.name}' is a file of answers, which has no alpha. Leave out the '@'.")
        self.name, self.path = spec.name, spec.path
        self.alpha: Mapping[str, float] = {}
        self._file = Path(spec.path).expanduser()
        self._answers = read_answers(self._file)
        self.recorded: Mapping[str, Any] | None = self._answers.decoding

    @property
    def identity(self) -> str:
        """The file's own digest."""
        return file_sha256(self._file)

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """Nothing stops a file; what it lacks is found when systems are compared."""
        del question, decoding

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Look the answers up; those that are not there, or have no reply at all, are left out."""
        del decoding
        found = (self._answers.of(question) for question in questions)
        return [answer for answer in found if answer is not None and answer.replies]

    def release(self) -> None:
        """There is no model to let go of."""
