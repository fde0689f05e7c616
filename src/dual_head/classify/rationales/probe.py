"""The leak probe: how much of the label a bag of words can tell from the rationale alone, and from the input alone.

TF-IDF of one and two words, logistic regression. It knows examples and scikit-learn, and no model of ours.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dual_head.classify.types import Example
from dual_head.errors import require
from dual_head.stats import wilson

FOLDS = 5
MANY = 500  # rows from which on words of one row alone are left out
AT_MOST = 12_000  # rows to fit on; more tell no more about a leak, and take minutes


@dataclass(frozen=True)
class Accuracy:
    """A share of rows classified correctly, with its 95% Wilson interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Probe:
    """Accuracy of the rationale alone, of the input alone and of the most frequent label, on the same rows.

    rows: that were classified; fitted: rows fitted on; how: "held out", or "5 folds"; leak: whether the rationale
    alone tells the label significantly better than the input does (their intervals do not meet).
    """

    rows: int
    fitted: int
    how: str
    rationale: Accuracy
    input: Accuracy
    majority: Accuracy
    leak: bool


class NothingToProbe(ValueError):
    """Why there can be no probe."""


def probe(examples: Sequence[Example], *, held_out: Sequence[Example] | None = None, seed: int = 0) -> Probe:
    """Measure the leak on `held_out`, or by cross-validation in which rows of one passage or premise stay together.

    Of soft labels the greatest share counts; rows without a label or a rationale are left out; of more than 12,000
    rows a random sample is fitted on. Errors: `NothingToProbe`; no scikit-learn.
    """
    rows = _usable(examples)
    if any(isinstance(e.label, tuple) and abs(math.fsum(e.label) - 1) > 1e-3 for e in rows):
        raise NothingToProbe("rows have several labels, and the probe tells one")
    rows = Random(seed).sample(rows, min(AT_MOST, len(rows)))
    if held_out is None:
        splits, how = _folds(rows), f"{FOLDS} folds"
    else:
        splits, how = [(rows, _usable(held_out))], "held out"
    if any(len({_class(e) for e in fit}) < 2 or not test for fit, test in splits) or not rows:
        raise NothingToProbe("too few rows with a rationale and a label, or all of one label")
    tested = [_class(e) for _, test in splits for e in test]
    most = [Counter(_class(e) for e in fit).most_common(1)[0][0] for fit, test in splits for _ in test]
    predictions = {
        "rationale": [place for fit, test in splits for place in _fit(fit, test, "rationale", seed)],
        "input": [place for fit, test in splits for place in _fit(fit, test, "input", seed)],
        "majority": most,
    }
    scores = {name: _accuracy(predicted, tested) for name, predicted in predictions.items()}
    leak = scores["rationale"].interval[0] > scores["input"].interval[1]
    return Probe(rows=len(tested), fitted=len(rows), how=how, leak=leak, **scores)


def _usable(examples: Sequence[Example]) -> list[Example]:
    return [e for e in examples if e.rationale.strip() and e.label is not None]


def _class(example: Example) -> int:
    label = example.label
    return max(range(len(label)), key=label.__getitem__) if isinstance(label, tuple) else int(label or 0)


def _folds(rows: list[Example]) -> list[tuple[list[Example], list[Example]]]:
    """Each row is tested once, by a probe that was fitted on none with its first line: a passage, a premise."""
    groups: dict[str, int] = {}
    places = [groups.setdefault(e.input.casefold().split("\n")[0].strip(), len(groups)) % FOLDS for e in rows]
    both = list(zip(rows, places, strict=True))
    return [([e for e, at in both if at != fold], [e for e, at in both if at == fold]) for fold in range(FOLDS)]


def _fit(fit: Sequence[Example], test: Sequence[Example], part: str, seed: int) -> list[int]:
    """What a probe of one part of the examples says of the tested ones."""
    require("sklearn", "eval")
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-not-found]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found]

    # Of many rows, what is in one alone tells nothing of others and takes most of the time.
    analyzer: Any = _words  # a function, whatever their annotation says
    words = TfidfVectorizer(analyzer=analyzer, min_df=2 if len(fit) >= MANY else 1)
    try:
        features: Any = words.fit_transform([getattr(e, part) for e in fit])
    except ValueError as error:  # how scikit-learn says that there is no word
        raise NothingToProbe(f"the {part}s have no words") from error
    model = LogisticRegression(max_iter=300, random_state=seed).fit(features, [_class(e) for e in fit])
    return [int(place) for place in model.predict(words.transform([getattr(e, part) for e in test]))]


def _words(text: str) -> list[str]:
    """One and two words that follow each other, each with its line: the same word in premise and hypothesis is two."""
    marked = []
    for number, line in enumerate(text.casefold().split("\n")):
        words = re.findall(r"\w+", line)
        marked += [f"{number} {word}" for word in words]
        marked += [f"{number} {first} {second}" for first, second in itertools.pairwise(words)]
    return marked


def _accuracy(predicted: Sequence[int], tested: Sequence[int]) -> Accuracy:
    right = sum(a == b for a, b in zip(predicted, tested, strict=True))
    return Accuracy(right / len(tested), wilson(right, len(tested)))
