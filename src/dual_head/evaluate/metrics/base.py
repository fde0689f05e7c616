"""What a metric is, and what it measures with.

A metric is a function from questions, answers and tools to one number for each question. It knows no benchmark and no
judge, and it never compares systems.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dual_head.evaluate.types import Answer, Question
from dual_head.replies.refusals import is_refusal

if TYPE_CHECKING:  # the command lists metrics without waiting for torch
    from transformers import PreTrainedTokenizerBase

    from dual_head.evaluate.metrics.embedding import Embedder
    from dual_head.evaluate.rewards import Reward
    from dual_head.model.alpha import Alpha

__all__ = ["Absent", "Measured", "Metric", "Tools", "Values"]

Values = list[float | None]  # one for each question; None where it is missing
Compute = Callable[[Sequence[Question], Sequence[Answer], "Tools"], "Values | dict[str, Values]"]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What metrics measure with; one that lacks its tool is left out, and says so.

    model, alpha: the system that replied, and its strength; base: the model it was made of, of an `AlignedModel` its
    own backbone where none is given; tokenizer: of both; rewards: {name: reward} of models that guided nobody;
    embedder: a sentence-transformers folder or hub name, or a function; refuses: whether a reply refuses.
    """

    model: Any = None
    alpha: "Alpha" = None
    base: Any = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    rewards: "Mapping[str, Reward]" = field(default_factory=dict)
    embedder: "str | Embedder | None" = None
    refuses: Callable[[str], bool] = is_refusal
    device: str | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class Metric:
    """A metric.

    name: of its column ("reward" stands for every "reward:NAME"); about: what it says; compute: a function that several
    metrics may share, which then returns {name: values} of them all; better: "higher", "lower", or "" where neither is;
    applies: whether a question has a value.
    """

    name: str
    about: str
    compute: Compute
    unit: str = ""
    better: str = ""
    applies: Callable[[Question], bool] = lambda _: True


@dataclass(frozen=True)
class Measured:
    """Values by metric and question id, None where one is missing, and notes on metrics that are absent or lacking."""

    values: dict[str, dict[str, float | None]]
    notes: tuple[str, ...] = ()


class Absent(Exception):
    """What a metric needs is not there; the text says what."""
