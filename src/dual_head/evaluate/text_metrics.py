"""How much a text repeats itself: figures of its n-grams. It knows tokens as values that can be equal, and no model."""

import math
from collections.abc import Hashable, Sequence

DIVERSITY_NS = (2, 3, 4)


def distinct_n(tokens: Sequence[Hashable], n: int) -> float:
    """Share of the n-grams that differ from each other, in [0, 1].

        distinct n-grams / n-grams

    0 where the text is too short to have one. Source: Li et al. 2016, per text rather than per corpus.
    """
    grams = _ngrams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def diversity(tokens: Sequence[Hashable]) -> float:
    """How little a text repeats itself, in [0, 1).

        prod_{n=2..4} (1 - rep_n / 100)        rep_n = 100 (1 - distinct n-grams / (n-grams + 1))

    0 under four tokens; the + 1 keeps short texts low. Source: ARGS (Khanov et al. 2024).
    """
    return math.prod(len(set(grams)) / (len(grams) + 1) for grams in (_ngrams(tokens, n) for n in DIVERSITY_NS))


def _ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
