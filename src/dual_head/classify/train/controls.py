"""What a gain from rationales is held against: the same training with the rationales taken away or spoilt.

Each control changes examples, or how they are written and weighted, and nothing else; labels and answers stay the
row's own, so that the class loss is the same in all. It knows examples, and no model.

    pooled              no reasoning loss at all: the plain classifier
    input_lm            next-token loss on the input only
    label_only          of the rows that have a rationale, the answer is written and the rationale is not
    shuffled            each row gets another row's rationale
    shuffled_in_class   another row's of the same label: of shares, the largest; of several, all
    permuted            the words of each rationale in random order
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, get_args

from dual_head.classify.types import Example, classes_of
from dual_head.errors import DualHeadError, did_you_mean

Control = Literal["none", "pooled", "input_lm", "label_only", "shuffled", "shuffled_in_class", "permuted"]


@dataclass(frozen=True)
class Controlled:
    """Examples under a control, and the options it sets: of the model ("lm_weight", ...) or of the `TextForm`.

    note: how many rationales it could not spoil, "" where it spoilt them all.
    """

    examples: list[Example]
    model: dict[str, Any]
    form: dict[str, Any]
    note: str = ""


def apply_control(control: Control, examples: Sequence[Example], *, seed: int = 0) -> Controlled:
    """Put examples under a control, reproducibly by `seed`. Errors: an unknown control, nothing to spoil."""
    if control not in get_args(Control):
        raise DualHeadError(f"Unknown control '{control}'.{did_you_mean(control, get_args(Control))}")
    rows = list(examples)
    if control in ("shuffled", "shuffled_in_class", "permuted") and not any(row.rationale.strip() for row in rows):
        raise DualHeadError(f"The control '{control}' spoils rationales, and no row has one. Use 'pooled'.")
    if control == "pooled":
        return Controlled([replace(row, rationale="") for row in rows], {"lm_weight": 0.0}, {})
    if control == "input_lm":
        return Controlled([replace(row, rationale="") for row in rows], {"lm_scope": "everything"}, {})
    if control == "label_only":
        return Controlled(rows, {}, {"answer": "alone"})
    if control == "none":
        return Controlled(rows, {}, {})
    rng = Random(f"{control}:{seed}")
    if control == "permuted":
        controlled = [replace(row, rationale=_permuted(row.rationale, rng)) for row in rows]
    else:
        controlled = _shuffled(rows, rng, in_class=control == "shuffled_in_class")
    return Controlled(controlled, {}, {}, _unspoilt(control, rows, controlled))


def _unspoilt(control: str, rows: list[Example], controlled: list[Example]) -> str:
    """Count the rationales that are still what they were. Errors: all of them."""
    words = [(row.rationale.split(), new.rationale.split()) for row, new in zip(rows, controlled, strict=True)]
    same, rationales = sum(old == new != [] for old, new in words), sum(bool(old) for old, _ in words)
    if same == rationales:
        needs = {
            "shuffled": "two different rationales",
            "shuffled_in_class": "two different rationales of one label",
            "permuted": "rationales of several words",
        }[control]
        raise DualHeadError(
            f"The control '{control}' changes none of these {rationales} rationales: it needs {needs}. "
            "Take more rows, or another control."
        )
    return f"{control}: {same} of {rationales} rationales stay as they are." if same else ""


def _shuffled(rows: list[Example], rng: Random, *, in_class: bool) -> list[Example]:
    """Every rationale one place further in a random order, so that no row keeps its own; rows without one stay so."""
    groups: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        if row.rationale.strip():
            # Not by the shares themselves, which may be a row's own.
            key = (row.label is None, classes_of(row.label)) if in_class else None
            groups.setdefault(key, []).append(i)
    shuffled = list(rows)
    for places in groups.values():
        order = rng.sample(places, len(places))
        for to, source in zip(order, _of_others(order, rows), strict=True):
            shuffled[to] = replace(rows[to], rationale=rows[source].rationale)
    return shuffled


def _of_others(order: list[int], rows: list[Example]) -> list[int]:
    """Whose rationale each place of an order gets: the next one's, unless it explains the same input."""
    sources = order[1:] + order[:1]
    inputs = [rows[i].input for i in order]
    for i, text in enumerate(inputs):
        if rows[sources[i]].input == text:  # another explanation of it, or the same row twice
            apart = (j for j, other in enumerate(inputs) if text not in (other, rows[sources[j]].input))
            j = next(apart, i)
            sources[i], sources[j] = sources[j], sources[i]
    return sources


def _permuted(rationale: str, rng: Random) -> str:
    words = rationale.split()
    return " ".join(rng.sample(words, len(words)))
