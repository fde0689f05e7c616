"""What is wrong with rationales before anything is trained on them: labels told, blanks, copies, leaks.

A rationale that tells its label gives the reasoning head the label to learn and nothing else. The leak probe measures
it: a bag-of-words classifier of the rationale alone against one of the input alone. It knows examples, and no model.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dual_head.classify.rationales.probe import NothingToProbe, Probe, probe
from dual_head.classify.types import Example, Label, TextForm, classes_of
from dual_head.errors import DualHeadError
from dual_head.stats import wilson

__all__ = ["Check", "Lint", "agrees", "label_words", "lint"]

SHOWN, CUT = 3, 160  # examples shown of each finding, and characters of each
SHORT = 3  # words; fewer explain nothing
LONG = 5  # times the median number of words
MARK = re.compile(r"</?[A-Za-z][\w.:-]*>|<\|[^<>|\s]+\|>")  # <REASON>, </s>, <|im_end|>


@dataclass(frozen=True)
class Check:
    """How many of `rows` have a flaw: a count, its share, and where it is first seen, as (place, text)."""

    rows: int
    count: int
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def share(self) -> float:
        """count / rows, 0 where there are no rows."""
        return self.count / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Lint:
    """What was found: checks by name, the leak probe, how many words rationales have.

    agreement: rows whose own answer is their label's, with a 95% interval, None where no row has both; probe: None
    where there was nothing to probe, with `unprobed` saying why.
    """

    rows: int
    rationales: int
    words: dict[str, float]
    checks: dict[str, Check]
    repeated: list[tuple[int, str]]
    agreement: dict[str, Any] | None = None
    probe: Probe | None = None
    unprobed: str = ""
    labels: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        record = asdict(self)
        for name, check in self.checks.items():
            record["checks"][name]["share"] = check.share
        return record


def lint(
    examples: Sequence[Example],
    labels: Sequence[str],
    *,
    held_out: Sequence[Example] | None = None,
    form: TextForm | None = None,
    special: Sequence[str] = (),
    probing: bool = True,
    seed: int = 0,
) -> Lint:
    """Check the rationales of `examples`.

    labels: names by index; held_out: where the leak probe is measured, 5-fold cross-validation where not given;
    form: whose prefixes must not stand in the texts; special: a tokenizer's special tokens, which must not stand in
    rationales; probing: false leaves the probe out, which needs scikit-learn.
    Errors: no example.
    """
    if not examples:
        raise DualHeadError("There is no example to look at.")
    rationales = [example.rationale for example in examples if example.rationale.strip()]
    lengths = sorted(len(rationale.split()) for rationale in rationales)
    times = Counter(map(_plain, rationales))
    shortcut = None
    why = "" if probing else "switched off"
    if probing:
        try:
            shortcut = probe(examples, held_out=held_out, seed=seed)
        except NothingToProbe as reason:
            why = str(reason)
    return Lint(
        rows=len(examples),
        rationales=len(rationales),
        words={name: _quantile(lengths, at) for name, at in (("least", 0.0), ("median", 0.5), ("most", 1.0))},
        checks=_checks(examples, labels, (form or TextForm(), special), times, lengths),
        repeated=[(count, text[:CUT]) for text, count in times.most_common(SHOWN) if count > 1],
        agreement=_agreement(examples, labels),
        probe=shortcut,
        unprobed=why,
        labels=_label_counts(examples, labels),
    )


def _checks(
    examples: Sequence[Example],
    labels: Sequence[str],
    target: tuple[TextForm, Sequence[str]],
    times: Counter[str],
    lengths: Sequence[int],
) -> dict[str, Check]:
    any_word, own_words = label_words(labels), [label_words([name]) for name in labels]
    form, special = target
    prefixes = (prefix.strip() for prefix in form.prefixes().values())
    marks = re.compile("|".join(re.escape(prefix) for prefix in prefixes if prefix), re.I)
    longest = LONG * _quantile(lengths, 0.5)
    flaws: dict[str, Callable[[Example], Any]] = {
        "word of a label": lambda e: any_word.search(e.rationale),
        "word of its own label": lambda e: any(own_words[place].search(e.rationale) for place in _classes(e.label)),
        "text of its answer": _tells_answer,
        "prefix of ours in the rationale": lambda e: marks.search(e.rationale),
        "special token or mark in the rationale": lambda e: (
            MARK.search(e.rationale) or any(token in e.rationale for token in special)
        ),
        "copied from the input": _copied,
        f"fewer than {SHORT} words": lambda e: len(e.rationale.split()) < SHORT,
        f"over {LONG} times the median length": lambda e: len(e.rationale.split()) > longest,
        "same rationale in several rows": lambda e: times[_plain(e.rationale)] > 1,
    }
    everyone = list(enumerate(examples))
    explained = [(i, e) for i, e in everyone if e.rationale.strip()]
    return {
        "no rationale": _check(everyone, lambda e: not e.rationale.strip(), "input"),
        "prefix of ours in the input": _check(everyone, lambda e: marks.search(e.input), "input"),
        **{name: _check(explained, flawed, "rationale") for name, flawed in flaws.items()},
    }


def _check(rows: Sequence[tuple[int, Example]], flawed: Callable[[Example], Any], part: str) -> Check:
    hits = [(i, example) for i, example in rows if flawed(example)]
    shown = ((example.id or f"row {i + 1}", getattr(example, part)[:CUT]) for i, example in hits[:SHOWN])
    return Check(len(rows), len(hits), tuple(shown))


def _quantile(ordered: Sequence[int], at: float) -> float:
    return float(ordered[int(at * (len(ordered) - 1))]) if ordered else 0.0


def label_words(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds the names of labels as whole words, in any case, "_" also as a space or "-".

    A name of one letter or digit is looked for as "(a)" only: as a word it means nothing.
    """
    patterns = []
    for name in names:
        parts = [re.escape(part) for part in re.split(r"[\s_-]+", name.strip()) if part]
        if not parts:
            continue
        word = r"[\s_-]+".join(parts)
        patterns.append(rf"\({word}\)" if len(name.strip()) == 1 else rf"(?<!\w){word}(?!\w)")
    return re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE)


def agrees(answer: str, name: str) -> bool:
    """Whether an answer, "b" or "(b) text", is the label of this name, case and a full stop aside."""
    text, label = answer.strip().rstrip(".").casefold(), name.strip().casefold()
    return text == label or text.startswith((f"({label}) ", f"{label}) ")) or text == f"({label})"


def _tells_answer(example: Example) -> bool:
    answer = _plain(re.sub(r"\A\(\w\)", "", example.answer.strip()))
    return bool(answer) and f" {answer} " in f" {_plain(example.rationale)} "


def _copied(example: Example) -> bool:
    rationale = _plain(example.rationale)
    return len(rationale.split()) >= SHORT and f" {rationale} " in f" {_plain(example.input)} "


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _classes(label: Label) -> Sequence[int]:
    """The classes that a label says: those with half of it or more, or else the one with most."""
    shares = label if isinstance(label, tuple) else ()
    return [place for place, share in enumerate(shares) if share >= 0.5] or classes_of(label)


def _agreement(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, Any] | None:
    both = [agrees(e.answer, labels[e.label]) for e in examples if e.answer and isinstance(e.label, int)]
    return (
        {"rows": len(both), "share": sum(both) / len(both), "interval": wilson(sum(both), len(both))} if both else None
    )


def _label_counts(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(labels[place] for example in examples for place in _classes(example.label))
    return {name: counts[name] for name in labels}
