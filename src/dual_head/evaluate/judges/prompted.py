"""A judge that is asked in words: a template for each comparison or answer, and a verdict read from the reply."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from dual_head.data import Message
from dual_head.evaluate.judges.prompts import Family, Pattern, load_family
from dual_head.evaluate.types import Comparison, Question, Replies, Verdict

Item = tuple[list[Message], Pattern]  # what is asked, and how its verdict is written


class PromptedJudge(ABC):
    """Asks for a verdict on each item; both orders are worth asking for. template: see `load_family`."""

    name: str
    identity: str
    symmetric = False

    def __init__(self, template: str):
        self.family: Family = load_family(template)

    @abstractmethod
    def verdicts(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """Read a verdict on each item, in any order: (index, verdict)."""

    def require(self, questions: Sequence[Question], kinds: Sequence[str]) -> None:
        """Refuse questions that no template is for."""
        self.family.needed(questions, kinds)

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Verdict]]:
        """Ask which of two answers is better."""
        return self.verdicts([self._item("pairwise", c.question, c.first, c.second) for c in comparisons])

    def grade(self, answers: Sequence[tuple[Question, Replies]]) -> Iterator[tuple[int, Verdict]]:
        """Ask for a grade of each answer."""
        return self.verdicts([self._item("single", *answer) for answer in answers])

    def _item(self, kind: str, question: Question, *replies: Replies) -> Item:
        template = self.family.choose(question, kind)
        return template.messages(question, *replies), template.pattern
