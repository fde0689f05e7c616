"""The nouns of classification: an `Example`, and how its texts are put together.

`formats` makes examples of rows, `tokenize` token ids, `collate` tensors, `model` class logits. This file knows none
of them: it stands below all.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dual_head.errors import DualHeadError
from dual_head.options import build

__all__ = ["NO_LABEL", "Example", "Label", "TextForm", "as_shares", "classes_of", "in_words"]

Label = int | tuple[float, ...] | None
NO_LABEL = "none"  # what is written of a row that has none of the labels


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to classify, and what is known about it.

    input: the text, with whatever question or template belongs to it; label: the index of its class, or a share or a
    0 or 1 for each class; None where unknown; rationale: why, "" without one; answer: the label as the
    reasoning head writes it, "" for the label's name; group: rows that only count together share it (MultiRC's
    answers to one question); together: rows that are held out together share it (a premise's, a passage's).
    """

    input: str
    label: Label = None
    rationale: str = ""
    answer: str = ""
    group: str = ""
    id: str = ""
    together: str = ""

    @property
    def side_key(self) -> str:
        """What decides whether a share that is held out has this row: rows of one key are on one side."""
        return self.together or self.group or self.input


def as_shares(label: int | tuple[float, ...], classes: int) -> tuple[float, ...]:
    """A label as shares: a class has all of it."""
    return label if isinstance(label, tuple) else tuple(float(place == label) for place in range(classes))


def classes_of(label: Label) -> tuple[int, ...]:
    """The classes that a label says: of shares, which sum to 1, the largest; of zeros and ones, every one."""
    if not isinstance(label, tuple):
        return () if label is None else (label,)
    if set(label) - {0.0, 1.0} and abs(sum(label) - 1) < 1e-3:
        return (label.index(max(label)),)
    return tuple(place for place, share in enumerate(label) if share >= 0.5)


def in_words(label: Label, names: Sequence[str]) -> str:
    """The names of the classes that a label says, "none" for an empty set; "" where it is unknown."""
    return "" if label is None else ", ".join(names[place] for place in classes_of(label)) or NO_LABEL


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """How an example is written: input, then reason_prefix and rationale, then answer_prefix and answer.

        Is ice cold? Reasoning: Ice is frozen. Final Answer: yes      the prefixes begin lines of their own by default
        [   input   |        rationale        |     answer     ]

    answer: where the answer stands, "after" the rationale, "before" it, "absent", or "alone", which writes no
    rationale. Nothing follows the input of a row without a rationale, so that the same rows learn whatever is written.
    The input is tokenised alone, so that what is pooled cannot depend on what follows.
    """

    reason_prefix: str = "\nReasoning: "
    answer_prefix: str = "\nFinal Answer: "
    answer: Literal["after", "before", "absent", "alone"] = "after"

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> "TextForm":
        """Read back what `as_dict` wrote. Errors: unknown keys."""
        return build(cls, values or {})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a config."""
        return asdict(self)

    def prefixes(self) -> dict[str, str]:
        """What stands before each kind of part."""
        return {"rationale": self.reason_prefix, "answer": self.answer_prefix}

    def parts(self, example: Example, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """What follows the input, in order: ("rationale" | "answer", text); nothing where there is no rationale."""
        answer = example.answer or in_words(example.label, names)
        answer_part = ("answer", self.answer_prefix + answer)
        if not example.rationale.strip():
            return ()
        if self.answer == "alone":
            return (answer_part,) if answer else ()
        rationale_part = ("rationale", self.reason_prefix + example.rationale.strip())
        if self.answer == "absent" or not answer:
            return (rationale_part,)
        return (rationale_part, answer_part) if self.answer == "after" else (answer_part, rationale_part)

    def __post_init__(self) -> None:
        if not self.reason_prefix.strip():
            raise DualHeadError("reason_prefix is what tells a rationale from its input; it cannot be blank.")
