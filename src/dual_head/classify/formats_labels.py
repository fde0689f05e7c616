"""Labels as rows write them to class indices: names, numbers, truth values, shares, several at once.

It knows labels only, neither rows nor files.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dual_head.data import Dropped
from dual_head.data.sources import ClassName
from dual_head.errors import DualHeadError, did_you_mean

Label = int | tuple[float, ...] | None
NONE = "-1"  # how data sets write that a label is not known


class LabelReader:
    """Reads labels into indices of `names`.

    names: of the classes, in order; own: the data format's own names, which numbers stand for, () where numbers
    stand for `names`; aliases: other words for them, in lower case; multi_label: whether a row may have several
    labels, or none. Where a name is itself a number, numbers are names, -1 too.
    Errors: a name twice; names that are neither some of `own` nor new ones for all of them.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        own: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
        multi_label: bool = False,
    ):
        self.names, self.own, self.multi_label = tuple(names), own or tuple(names), multi_label
        if len(set(self.names)) < len(self.names):
            raise DualHeadError(f"A label is named twice in {', '.join(self.names)}. Name each class once.")
        strangers = [name for name in self.names if name not in self.own]
        if len(strangers) == len(self.own) == len(self.names):
            self._places = {name: place for place, name in enumerate(self.own)}
        elif strangers:
            raise DualHeadError(f"There is no label '{strangers[0]}'.{did_you_mean(strangers[0], self.own)}")
        else:
            self._places = {name: place for place, name in enumerate(self.names)}
        self._numbered = not any(name.removeprefix("-").isdecimal() for name in self.own)
        folded = Counter(name.casefold() for name in self.own)
        # Names that differ in case only have to be written as they are.
        own_folded = {name.casefold(): name for name in self.own if folded[name.casefold()] == 1}
        self._folded = {**(aliases or {}), **own_folded}

    def __call__(self, raw: Any) -> Label:
        """Read a label; None where it is not known. Raises `Dropped` for one that is not among the names."""
        if isinstance(raw, (list, tuple)):
            return self._several(raw) if self.multi_label and not _floats(raw) else self._shares(raw)
        if unknown(raw, self.own):
            return None
        place = self._place(raw)
        return self._hot([place]) if self.multi_label else place

    def _place(self, raw: Any) -> int:
        name = self._own_name(raw)
        if name not in self._places:
            raise Dropped(f"unknown label '{_said(raw)[:60]}'")
        return self._places[name]

    def _own_name(self, raw: Any) -> str | None:
        said = _said(raw)
        if said in self.own:
            return said
        if (name := self._folded.get(said.casefold())) is not None:
            return name
        number = int(said) if self._numbered and said.isdecimal() else None
        if isinstance(raw, bool) and len(self.own) == 2:
            number = int(raw)
        return self.own[number] if number is not None and number < len(self.own) else None

    def _several(self, raw: Sequence[Any]) -> tuple[float, ...]:
        if any(unknown(one, self.own) for one in raw):
            raise Dropped("a list of labels with an unknown one in it")
        places = [self._place(one) for one in raw]
        if len(set(places)) < len(places):
            # [0, 1, 0] may have been meant as flags; read as classes it would be wrong without a word.
            raise Dropped("a class twice in a list of labels; flags are written 0.0 and 1.0")
        return self._hot(places)

    def _hot(self, places: Sequence[int]) -> tuple[float, ...]:
        return tuple(float(place in places) for place in range(len(self.names)))

    def _shares(self, raw: Sequence[Any]) -> tuple[float, ...]:
        """Shares in the order of `own`: each in [0, 1], and together 1 unless there may be several labels."""
        if len(raw) != len(self.own):
            raise Dropped(f"{len(raw)} shares for {len(self.own)} labels")
        if not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in raw):
            raise Dropped("shares that are not between 0 and 1")
        if not self.multi_label and abs(math.fsum(raw) - 1) > 1e-3:
            raise Dropped("shares that do not sum to 1")
        found = [0.0] * len(self.names)
        for name, share in zip(self.own, raw, strict=True):
            if name in self._places:
                found[self._places[name]] = float(share)
            elif share:
                raise Dropped(f"unknown label '{name}'")
        return tuple(found)


def class_names(raws: Iterable[Any]) -> tuple[str, ...]:
    """The names that a data set itself has for its classes, in the order of their numbers; () where it has none."""
    listed = (one for raw in raws for one in (raw if isinstance(raw, list) else [raw]))
    return next((one.names for one in listed if isinstance(one, ClassName)), ())


def label_names(raws: Iterable[Any], *, multi_label: bool = False) -> tuple[str, ...]:
    """The names that labels have among themselves: sorted, numbers by size; the classes of shares are 0, 1, 2, ...

    Errors: names in some rows and shares in others, which cannot tell the order of the names.
    """
    names: set[str] = set()
    shares: Counter[int] = Counter()
    for raw in raws:
        listed = isinstance(raw, (list, tuple))
        if listed and (_floats(raw) or not multi_label):
            shares[len(raw)] += 1
            continue
        for one in raw if listed else (raw,):
            try:
                names |= set() if unknown(one) else {_said(one)}
            except Dropped:
                continue  # counted when it is read
    if shares:
        if not all(name.isdecimal() for name in names):
            raise DualHeadError("Some labels are names and some are shares. Say which share is whose: --labels a,b,c.")
        return tuple(str(i) for i in range(shares.most_common(1)[0][0]))
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def unknown(raw: Any, names: Sequence[str] = ()) -> bool:
    """Whether this says that the label is not known: nothing, "", NaN, or -1 unless that is the name of a class."""
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return True
    said = str(raw).strip()
    return not said or (said in (NONE, f"{NONE}.0") and NONE not in names)


def _said(raw: Any) -> str:
    """A label as text: 1 and 1.0 are "1", and truth values as JSON has them."""
    if isinstance(raw, str):
        return raw.strip()
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, (int, float)) and math.isfinite(raw) and raw == int(raw):
        return str(int(raw))
    raise Dropped(f"a label that is no class: {str(raw)[:60]}")


def _floats(raw: Sequence[Any]) -> bool:
    return bool(raw) and all(isinstance(one, float) for one in raw)
