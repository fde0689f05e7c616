"""What every system has: what answers questions, be it a model, an endpoint, or a file of answers.

What a system is can be told without loading it, so that stored answers need no model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dual_head.data import RowReport
from dual_head.errors import DualHeadError
from dual_head.evaluate.systems.specs import SystemSpec
from dual_head.evaluate.types import Answer, Decoding, Question

__all__ = ["LoadOptions", "System", "fits"]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How models are loaded, and how endpoints are asked (fields of `EndpointOptions`).

    backbone: a copy of the guides' backbone in another place, None for where they were trained.
    """

    backbone: str | None = None
    other_precision: bool = False
    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False
    endpoint_options: Mapping[str, Any] = field(default_factory=dict)


class System(ABC):
    """A system that answers. One kind is one file here, which ends in `SYSTEM = Its Class`.

    name: as tables show it; path: where it is; alpha: the strength of each guide, {} where there are none; recorded:
    how its answers were decoded, where they were given before and this is known; stored: whether they were; chats:
    whether it takes a text as a user's message; remote: whether `endpoint_options` say how it is asked, and each
    question is answered by itself; at_once: how many questions it takes at a time, at least; context: the tokens that
    it reads at once, None where this is unknown.
    """

    stored: ClassVar[bool] = False
    recorded: Mapping[str, Any] | None = None
    chats: bool = False
    remote: bool = False
    at_once: int = 1
    context: int | None = None
    why_no_alpha: ClassVar[str] = "has no guides, so it has no alpha"

    def __init__(self, spec: SystemSpec, load: LoadOptions):
        self.name, self.path, self.load = spec.name, spec.path, load
        self.alpha: Mapping[str, float] = self.strengths(spec)

    @classmethod
    @abstractmethod
    def reads(cls, path: str) -> bool:
        """Whether what is at a path is of this kind, told without loading it."""

    def strengths(self, spec: SystemSpec) -> dict[str, float]:
        """The strength of each guide. Errors: there is none to give one to."""
        if spec.alpha is not None:
            raise DualHeadError(f"'{self.name}' {self.why_no_alpha}. Leave out the '@'.")
        return {}

    @property
    def parts(self) -> list[str]:
        """The models that it is made of, none of which judges it: folders, names on the hub, addresses."""
        return [self.path]

    @property
    @abstractmethod
    def identity(self) -> str:
        """64 hexadecimal digits of all that replies depend on, beside question and decoding."""

    def check(self, decoding: Decoding) -> None:  # noqa: B027 - most kinds decode in any way
        """Errors: a way of decoding that it has not, found before anything is asked."""

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """Say why it cannot answer a question with room for replies of full length; None where it can."""
        del question, decoding

    @abstractmethod
    def answer(self, questions: Sequence[Question], decoding: Decoding) -> Iterable[Answer]:
        """Answer one batch, turn by turn, in its order; what has no answer is left out.

        Answers that come before an error are kept.
        """

    def release(self) -> None:  # noqa: B027 - most kinds hold no model
        """Let go of the model, if there is one; it is loaded again when it is needed."""


def fits(
    questions: Sequence[Question], systems: Sequence[System], decoding: Decoding, *, count: int | None = None
) -> tuple[list[Question], RowReport]:
    """Keep the questions that every system can be asked, with room for replies of full length; count the others.

    count: how many are enough; those after them are not looked at. Errors: none is left; a way of decoding that a
    system has not.
    """
    for system in systems:
        system.check(decoding)
    fitting, report = [], RowReport(rows=len(questions))
    for question in questions:
        if len(fitting) == count:
            break
        reasons = (system.why_not(question, decoding) for system in systems)
        reason = next(filter(None, reasons), None)
        if reason is None:
            fitting.append(question)
        else:
            report.drop(reason, question.id)
    report.kept = len(fitting)
    if not fitting:
        raise DualHeadError(
            "No question is left that every system can be asked. Ask shorter ones, lower max_new_tokens "
            f"({decoding.max_new_tokens}), or leave a system out.\n{report.table()}"
        )
    return fitting, report
