"""A file of answers as a system, which can only be looked up."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dual_head.data.sources import is_data_name
from dual_head.evaluate.exchange import Recorded, read_answers
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.systems.identity import file_sha256
from dual_head.evaluate.types import Answer, Decoding, Question


class AnswersFile(System):
    """Answers that were given before, in any layout that `read_answers` reads."""

    stored = True
    why_no_alpha = "is a file of answers, which has no alpha"

    @classmethod
    def reads(cls, path: str) -> bool:
        """Whether it is a file that rows can be read from."""
        file = Path(path).expanduser()
        return file.is_file() and is_data_name(file.name)

    @cached_property
    def _answers(self) -> Recorded:
        return read_answers(self._file)

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def recorded(self) -> Mapping[str, Any] | None:
        """The decoding that the file tells, if any."""
        return self._answers.decoding

    @property
    def identity(self) -> str:
        """The file's own digest."""
        return file_sha256(self._file)

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Look the answers up; those that are not there, or have no reply at all, are left out."""
        del decoding
        answers = (self._answers.of(question) for question in questions)
        return [answer for answer in answers if answer is not None and answer.replies]


SYSTEM = AnswersFile
