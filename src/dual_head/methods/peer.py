"""Baselines that TRL's trainers train: each baseline names its trainer in its own file, `train.trl` builds it.

`trl` and `peft` are optional, and imported when a trainer is built.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dual_head.errors import DualHeadError

Row = Mapping[str, list[int]]  # prompt_ids, chosen_ids, rejected_ids


@dataclass(frozen=True)
class Trl:
    """A trainer of TRL and its config's class, with what both take besides the arguments of every run.

    settings: of the config; arguments: of the trainer; collate: of rows, None for the trainer's own; mixins: classes
    that go before the trainer's.
    """

    trainer: type
    config: type
    settings: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    collate: Callable[[list[Row]], dict[str, Any]] | None = None
    mixins: tuple[type, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PeerOptions(ABC):
    """The options of a baseline that TRL trains, and its trainer."""

    has_reference: ClassVar[bool] = False  # whether it compares with a frozen model

    @abstractmethod
    def trl(self, lm: Any, tokenizer: Any, reference: Any) -> Trl:
        """Import the trainer, for a model and a tokenizer with a padding token; reference: a frozen model, or None."""

    def prepare(self, tokenizer: Any) -> None:
        """Change the run's own copy of a tokenizer, where training needs it."""
        del tokenizer


@dataclass(frozen=True)
class ChangedRows:
    """TRL's own collator after one change of every row, so that evaluate() takes the rows that training took."""

    change: Callable[[Row], dict[str, list[int]]]
    collate: Callable[[list[dict[str, list[int]]]], dict[str, Any]]

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Change and collate rows."""
        return self.collate([self.change(row) for row in rows])


def require_above(options: PeerOptions, **bounds: float) -> None:
    """Refuse options that are not finite, or not above these bounds."""
    for name, bound in bounds.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and value > bound):
            raise DualHeadError(f"{type(options).__name__}.{name} must be above {bound}, not {value}.")
