"""Labels as rows write them to class indices: names, numbers, truth values, shares, several at once.

It knows labels only, neither rows nor files.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from dual_head.data import Dropped
from dual_head.data.sources import ClassName
from dual_head.errors import DualHeadError, did_you_mean

Label = int | tuple[float, ...] | None
NONE = "-1"  # how data sets write that a label is not known


class LabelReader:
    """Reads labels into indices of `names`.

    names: of the classes, in order; classes: the data format's own names, which numbers stand for, () where numbers
    stand for `names`; aliases: other words for them, in lower case; multi_label: whether a row may have several
    labels, or none. Where a name is itself a number, numbers are names, -1 too.
    Errors: a name twice; names that are neither some of `classes` nor new ones for all of them.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        classes: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
        multi_label: bool = False,
    ):
        self.names, self.classes, self.multi_label = tuple(names), classes or tuple(names), multi_label
        if len(set(self.names)) < len(self.names):
            raise DualHeadError(f"A label is named twice in {', '.join(self.names)}. Name each class once.")
        strangers = [name for name in self.names if name not in self.classes]
        if len(strangers) == len(self.classes) == len(self.names):
            self._places = {name: place for place, name in enumerate(self.classes)}
        elif strangers:
            raise DualHeadError(f"There is no label '{strangers[0]}'.{did_you_mean(strangers[0], self.classes)}")
        else:
            self._places = {name: place for place, name in enumerate(self.names)}
        self._numbered = not any(name.removeprefix("-").isdecimal() for name in self.classes)
        folded = Counter(_key(name) for name in self.classes)
        # Names given in two spellings of one, as A and a, are two classes: then rows have to write them as they are.
        folded_classes = {_key(name): name for name in self.classes if folded[_key(name)] == 1}
        self._folded = {**(aliases or {}), **folded_classes}

    def __call__(self, raw: Any) -> Label:
        """Read a label; None where it is not known. Raises `Dropped` for one that is not among the names."""
        if isinstance(raw, (list, tuple)):
            return self._several(raw) if self.multi_label and not _floats(raw) else self._shares(raw)
        if unknown(raw, self.classes):
            return None
        place = self._place(raw)
        return self._hot([place]) if self.multi_label else place

    def _place(self, raw: Any) -> int:
        name = self._class_name(raw)
        if name not in self._places:
            raise Dropped(f"unknown label '{_as_text(raw)[:60]}'")
        return self._places[name]

    def _class_name(self, raw: Any) -> str | None:
        label = _as_text(raw)
        if label in self.classes:
            return label
        if (name := self._folded.get(_key(label))) is not None:
            return name
        number = int(_key(label)) if self._numbered and _key(label).isdecimal() else None
        if isinstance(raw, bool) and len(self.classes) == 2:
            number = int(raw)
        return self.classes[number] if number is not None and number < len(self.classes) else None

    def _several(self, raw: Sequence[Any]) -> tuple[float, ...]:
        if any(unknown(one, self.classes) for one in raw):
            raise Dropped("a list of labels with an unknown one in it")
        places = [self._place(one) for one in raw]
        if len(set(places)) < len(places):
            # [0, 1, 0] may have been meant as flags; read as classes it would be wrong without a word.
            raise Dropped("a class twice in a list of labels; flags are written 0.0 and 1.0")
        return self._hot(places)

    def _hot(self, places: Sequence[int]) -> tuple[float, ...]:
        return tuple(float(place in places) for place in range(len(self.names)))

    def _shares(self, raw: Sequence[Any]) -> tuple[float, ...]:
        """Shares in the order of `classes`: each in [0, 1], and together 1 unless there may be several labels."""
        if _names_some(raw):
            raise Dropped("a list of labels, which --problem_type multi_label_classification or --multi_label reads")
        if len(raw) != len(self.classes):
            raise Dropped(f"{len(raw)} shares for {len(self.classes)} labels")
        if not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in raw):
            raise Dropped("shares that are not between 0 and 1")
        if not self.multi_label and abs(math.fsum(raw) - 1) > 1e-3:
            raise Dropped("shares that do not sum to 1")
        shares = [0.0] * len(self.names)
        for name, share in zip(self.classes, raw, strict=True):
            if name in self._places:
                shares[self._places[name]] = float(share)
            elif share:
                raise Dropped(f"unknown label '{name}'")
        return tuple(shares)


def class_names(raws: Iterable[Any]) -> tuple[str, ...]:
    """The names that a data set itself has for its classes, in the order of their numbers; () where it has none."""
    listed = (one for raw in raws for one in (raw if isinstance(raw, list) else [raw]))
    return next((one.names for one in listed if isinstance(one, ClassName)), ())


def label_names(raws: Iterable[Any], *, multi_label: bool = False) -> tuple[str, ...]:
    """The names that labels have among themselves: sorted, numbers by size; the classes of shares are 0, 1, 2, ...

    Spellings of one name, as "Yes", "yes" and " YES", or 1 and "1.0", are one class, named by the most frequent.
    Errors: names in some rows and shares in others, which cannot tell the order of the names.
    """
    names: dict[str, Counter[str]] = {}
    shares: Counter[int] = Counter()
    for raw in raws:
        listed = isinstance(raw, (list, tuple))
        if listed and not multi_label and _names_some(raw):
            continue  # counted when it is read
        if listed and (_floats(raw) or not multi_label):
            shares[len(raw)] += 1
            continue
        for spelling in _spelled(raw if listed else (raw,)):
            names.setdefault(_key(spelling), Counter())[spelling] += 1
    if shares:
        if not all(name.isdecimal() for name in names):
            raise DualHeadError("Some labels are names and some are shares. Say which share is whose: --labels a,b,c.")
        return tuple(str(i) for i in range(shares.most_common(1)[0][0]))
    spellings = [_spelling(key, counts) for key, counts in names.items()]
    return tuple(sorted(spellings, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def spelling_notes(raws: Iterable[Any], names: Sequence[str]) -> list[str]:
    """What to say of labels that are written in several ways, and of numbers among words."""
    spellings: dict[str, set[str]] = {}
    for raw in raws:
        for spelling in _spelled(raw if isinstance(raw, (list, tuple)) else (raw,)):
            spellings.setdefault(_key(spelling), set()).add(str(raw) if isinstance(raw, bool) else f"'{spelling}'")
    classes = {_key(name): name for name in names}
    several = {key: variants for key, variants in spellings.items() if len(variants) > 1 and key in classes}
    notes = [
        f"labels {', '.join(sorted(variants))} are one class, '{classes[key]}'" for key, variants in several.items()
    ]
    numbers = sum(name.isdecimal() for name in names)
    if 0 < numbers < len(names):
        notes.append(f"some labels are numbers and some are words: {', '.join(names)}. Say what is meant with --labels")
    return notes


def _spelled(raws: Iterable[Any]) -> Iterator[str]:
    """Labels as text, those left out that are not known or no class; they are counted when they are read."""
    for raw in raws:
        with suppress(Dropped):
            if not unknown(raw):
                yield _as_text(raw)


def _key(name: str) -> str:
    """What spellings of one name have in common: all but case and spaces, and for numbers but a decimal point."""
    whole = name.removesuffix(".0")
    return whole if whole.removeprefix("-").isdecimal() else " ".join(name.casefold().split())


def _spelling(key: str, counts: Counter[str]) -> str:
    """The most frequent spelling, of two alike the plainer one; of numbers the one without a decimal point."""
    return key if key.isdecimal() else min(counts, key=lambda name: (-counts[name], name != key, name))


def unknown(raw: Any, names: Sequence[str] = ()) -> bool:
    """Whether this says that the label is not known: nothing, "", NaN, or -1 unless that is the name of a class."""
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return True
    label = str(raw).strip()
    return not label or (label in (NONE, f"{NONE}.0") and NONE not in names)


def _as_text(raw: Any) -> str:
    """A label as text: 1 and 1.0 are "1", and truth values as JSON has them."""
    if isinstance(raw, str):
        name = raw.strip()
        if name.startswith("[") and name.endswith("]"):
            raise Dropped("labels written as a text, not as a list")
        return name
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, (int, float)) and math.isfinite(raw) and raw == int(raw):
        return str(int(raw))
    raise Dropped(f"a label that is not a class: {str(raw)[:60]}")


def _floats(raw: Sequence[Any]) -> bool:
    return bool(raw) and all(isinstance(one, float) for one in raw)


def _names_some(raw: Sequence[Any]) -> bool:
    """Whether a list holds labels, or none, and not shares."""
    return not raw or any(isinstance(one, str) for one in raw)
