"""The types of evaluation: questions, answers, comparisons, verdicts and judges.

`questions` reads benchmarks, `systems` answer them, `store` keeps the answers, `judges` decide, `verdicts` asks them in
both orders, `win_rates` counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from dual_head.data import Cut, Prompt
from dual_head.options import Options, option

__all__ = ["Answer", "Comparison", "Decoding", "Judge", "Question", "Verdict"]

DECODING = "decoding, the same for every system"
Replies = tuple[str, ...]  # one reply for each turn of a question


@dataclass(frozen=True)
class Question:
    """One thing that every system is asked.

    id: unique in its benchmark; prompt: a text to continue, or a conversation to answer; follow_ups: what the user
    says next, whatever the answer was (MT-Bench's second turn); category: of its benchmark, "" where it has none;
    references: a good reply to each turn, where the benchmark has one; layout: which of its benchmark's it was read
    from, "" for the first.
    """

    id: str
    prompt: Prompt
    follow_ups: tuple[str, ...] = ()
    category: str = ""
    references: Replies = ()
    layout: str = ""

    @property
    def asked(self) -> tuple[str, ...]:
        """What the user says in each turn to be answered; a text prompt is said as it is."""
        first = self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]
        return (first, *self.follow_ups)

    @property
    def by_turn(self) -> list["Question"]:
        """The first turn by itself, then the first two, and so on: what can be graded turn by turn."""
        turns = range(len(self.asked))
        return [replace(self, follow_ups=self.follow_ups[:n], references=self.references[: n + 1]) for n in turns]


@dataclass(kw_only=True)
class Decoding(Options):
    """How replies are generated. Errors: numbers out of their bounds."""

    max_new_tokens: int = option(128, "longest reply in tokens", heading=DECODING, least=1)
    temperature: float = option(0.0, "0 is greedy; above it, sample", least=0)
    top_p: float = option(1.0, "nucleus sampling", above=0, most=1)
    top_k: int = option(0, "sample among this many tokens; 0: all", least=0)
    seed: int = option(0, "of the questions picked and of sampling", least=0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a system replied to one question, turn by turn.

    question: its id; replies: texts without special tokens or lone surrogates; tokens: length of each reply, the
    end-of-sequence token included; finished: whether each ended by itself rather than at the limit of tokens.
    """

    question: str
    replies: Replies
    tokens: tuple[int, ...] = ()
    finished: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "replies", tuple(map(_writable, self.replies)))

    @property
    def marked(self) -> Replies:
        """The replies, those that stopped at the limit of tokens as `Cut`; an unknown end counts as an end."""
        ends = self.finished or (True,) * len(self.replies)
        return tuple(reply if end else Cut(reply) for reply, end in zip(self.replies, ends, strict=True))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Characters of each reply without the spaces around it, as the files of AlpacaEval and others hold it."""
        return tuple(len(reply.strip()) for reply in self.replies)


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question, in the order in which the judge is to read them."""

    question: Question
    first: Replies
    second: Replies


@dataclass(frozen=True)
class Verdict:
    """What a judge made of one comparison or one answer.

    value: of a comparison, how far the first is preferred: 1 first, 0 second, 0.5 a tie, between them where the judge
    says how sure it is; of an answer, its grade; None where no verdict could be read, with `flaw` saying why.
    said: the judge's own words; used: what it cost, such as {"requests": 1, "input_tokens": 230}.
    """

    value: float | None
    said: str = ""
    flaw: str = ""
    used: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "said", _writable(self.said))
        object.__setattr__(self, "flaw", _writable(self.flaw))


def _writable(text: str) -> str:
    """Replace lone surrogates, which JSON may hold, and which neither a file nor a tokenizer takes. Errors: no text."""
    return str.encode(text, "utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@runtime_checkable
class Judge(Protocol):
    """Prefers one answer to another, or grades one.

    name: as tables show it; identity: all that its verdicts depend on beside what it is shown, so that they can be
    kept; symmetric: whether showing the two in the other order can only turn the verdict round, so that one order
    is enough. Verdicts come as (index, verdict), as soon as each is known and in any order.
    """

    name: str
    identity: str
    symmetric: bool

    def require(self, questions: Sequence[Question], kinds: Sequence[str]) -> None:
        """Refuse questions whose answers it could not compare ("pairwise") or grade ("single"); no model is asked."""
        ...

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Verdict]]:
        """Prefer the first or the second answer of each comparison."""
        ...

    def grade(self, answers: Sequence[tuple[Question, Replies]]) -> Iterator[tuple[int, Verdict]]:
        """Give each answer a number, more being better."""
        ...
