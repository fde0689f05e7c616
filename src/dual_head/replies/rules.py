"""Rules: rewards that a reply's words decide, so that a judge is never noise.

A rule is one function (prompt, reply) -> number, finite for every reply, the empty one too. More is better. A reply
that stopped at the limit of tokens is a `Cut`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from dual_head.data import Cut, Prompt
from dual_head.errors import require
from dual_head.replies.refusals import is_refusal

LEAST_WORDS = 5  # a reply with fewer says nothing, and earns nothing by it
CONCISE_WORDS = 100
WORST_GRADE = 20.0
LATIN = re.compile("[A-Za-z]")
LIST_ITEM = re.compile(r"\s*(?:[-*\u2022+]|\d+[.)])\s+\S")


@dataclass(frozen=True)
class Rule:
    """A reward with its unit, and what it rewards in a few words; needs: a module of the extra `rules`."""

    score: Callable[[Prompt, str], float]
    unit: str
    about: str
    needs: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether what it needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None

    def require(self) -> None:
        """Refuse, with the install line, where what it needs is not installed."""
        if self.needs:
            require(self.needs, "rules")


def concise(_prompt: Prompt, reply: str) -> float:
    """Words that a finished reply saves of 100.

    max(0, 100 - words)        0 for a reply that was cut, or has under five words that hold a letter
    """
    words = reply.split()
    says = sum(any(character.isalpha() for character in word) for word in words) >= LEAST_WORDS
    return float(max(0, CONCISE_WORDS - len(words))) if says and not isinstance(reply, Cut) else 0.0


def plain(_prompt: Prompt, reply: str) -> float:
    """How few years of school a reply asks for: minus its Coleman-Liau index, in [-20, 0].

        -(0.058 L - 0.296 S - 15.8)        L letters, S sentences in a hundred words

    -20 under five words that hold a Latin letter: the index is of English, and counts nothing in other scripts.
    Errors: textstat is not there. Source: Coleman and Liau 1975; textstat has 0.058 for their 0.0588.
    """
    if sum(LATIN.search(word) is not None for word in reply.split()) < LEAST_WORDS:
        return -WORST_GRADE
    grade = float(require("textstat", "rules").coleman_liau_index(reply))
    return -min(max(grade, 0.0), WORST_GRADE)


def positive(_prompt: Prompt, reply: str) -> float:
    """Mean polarity of the words that have one, in [-1, 1], by the lexicon of TextBlob; 0 where none has.

    Errors: textblob is not there.
    """
    return float(require("textblob", "rules").TextBlob(reply).sentiment.polarity)


def bulleted(_prompt: Prompt, reply: str) -> float:
    """Share of a reply's lines that are items of a list, in [0, 1]; 0 with fewer than two items."""
    lines = [line for line in reply.splitlines() if line.strip()]
    items = sum(LIST_ITEM.match(line) is not None for line in lines)
    return items / len(lines) if items > 1 else 0.0


def refuses(_prompt: Prompt, reply: str) -> float:
    """1 for a reply that opens with a phrase of refusal, else 0."""
    return float(is_refusal(reply))


RULES: dict[str, Rule] = {
    "concise": Rule(concise, "words under 100", "short replies that are finished"),
    "plain": Rule(plain, "minus the school grade", "short words and short sentences", needs="textstat"),
    "positive": Rule(positive, "polarity", "a positive tone", needs="textblob"),
    "bulleted": Rule(bulleted, "share of lines", "a bulleted list"),
    "refuses": Rule(refuses, "share of replies", "a refusal"),
}
