"""What a metric is, and how all of them are computed of one system's answers.

A metric is one function of a file beside this one, from questions, answers and tools to a number for each question.
It knows nothing of benchmarks, of judges, or of which system is whose rival.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.benchmarks.refusals import is_refusal
from dual_head.evaluate.metrics.embedding import Embedder
from dual_head.evaluate.rewards import Reward
from dual_head.evaluate.types import Answer, Question
from dual_head.model.alpha import Alpha
from dual_head.stats import bootstrap_mean

__all__ = ["METRICS", "Absent", "Measured", "Metric", "Tools", "Values", "about", "measure", "metric", "summary"]

Values = list[float | None]  # one for each question; None where there should be one and is none
Compute = Callable[[Sequence[Question], Sequence[Answer], "Tools"], "Values | dict[str, Values]"]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What metrics measure with; one that lacks its tool is left out, and says so.

    model, alpha: the system that replied, and its strength; base: the model it was made of, of an `AlignedModel` its
    own backbone where none is given; tokenizer: of both; rewards: {name: reward} of models that guided nobody;
    embedder: a sentence-transformers folder or hub name, or a function; refuses: whether a reply refuses.
    """

    model: Any = None
    alpha: Alpha = None
    base: Any = None
    tokenizer: PreTrainedTokenizerBase | None = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    embedder: str | Embedder | None = None
    refuses: Callable[[str], bool] = is_refusal
    device: str | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class Metric:
    """A metric: its name ("reward" stands for every "reward:NAME"), what it says, and which questions it is of.

    better: "higher", "lower", or "" where neither is.
    """

    name: str
    about: str
    unit: str
    better: str
    applies: Callable[[Question], bool]
    compute: Compute


@dataclass(frozen=True)
class Measured:
    """Values by metric and question id, None where one is missing, and notes on metrics that are absent or lacking."""

    values: dict[str, dict[str, float | None]]
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Each metric as {"mean", "interval", "n", "missing"}."""
        return {name: summary(values) for name, values in self.values.items()}


class Absent(Exception):
    """What a metric needs is not there; the text says what."""


METRICS: dict[str, Metric] = {}


def metric(
    name: str, about: str, *, unit: str = "", better: str = "", applies: Callable[[Question], bool] = lambda _: True
) -> Callable[[Compute], Compute]:
    """Register a function as a metric. One that computes several is registered for each and returns {name: values}."""

    def register(compute: Compute) -> Compute:
        METRICS[name] = Metric(name, about, unit, better, applies, compute)
        return compute

    return register


def measure(
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    tools: Tools | None = None,
    *,
    metrics: Sequence[str] | None = None,
) -> Measured:
    """Compute metrics of one system's answers {question id: answer}; all that there are tools for by default.

    NaN, infinity and unanswered questions are missing: counted, never averaged. Errors: an unknown metric.
    """
    tools = tools or Tools()
    for name in metrics or ():
        if name not in METRICS:
            raise DualHeadError(f"Unknown metric '{name}'.{did_you_mean(name, METRICS)}")
    values: dict[str, dict[str, float | None]] = {}
    notes: list[str] = []
    computed: dict[tuple[Compute, tuple[str, ...]], Any] = {}
    for metric in METRICS.values() if metrics is None else [METRICS[name] for name in metrics]:
        applicable = [question for question in questions if metric.applies(question)]
        replied = [question for question in applicable if question.id in answers]
        if not replied:
            notes.append(f"{metric.name}: there is no question that it is of")
            continue
        key = metric.compute, tuple(question.id for question in replied)
        try:
            if key not in computed:  # what several metrics share
                computed[key] = metric.compute(replied, [answers[question.id] for question in replied], tools)
        except Absent as reason:
            notes.append(f"{metric.name}: {reason}")
            continue
        for column, numbers in _columns(metric.name, computed[key]).items():
            by_id = dict(zip(key[1], map(_finite, numbers), strict=True))
            values[column] = {question.id: by_id.get(question.id) for question in applicable}
            if missing := sum(value is None for value in values[column].values()):
                notes.append(f"{column}: {missing} of {len(applicable)} replies have no value")
    return Measured(values, tuple(notes))


def about(name: str) -> dict[str, str]:
    """Say what a metric is: {"name", "unit", "better", "about"}. Errors: an unknown one."""
    family = name.partition(":")[0]
    if family not in METRICS:
        raise DualHeadError(f"Unknown metric '{name}'.{did_you_mean(name, METRICS)}")
    metric = METRICS[family]
    return {"name": name, "unit": metric.unit, "better": metric.better, "about": metric.about}


def summary(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Mean of the values {question id: value} that are there, and its 95% bootstrap interval over questions."""
    known = [value for value in values.values() if value is not None]
    counts = {"n": len(known), "missing": len(values) - len(known)}
    if not known:
        return {"mean": None, "interval": None, **counts}
    return {"mean": fmean(known), "interval": list(bootstrap_mean(known)), **counts}


def _columns(name: str, computed: Any) -> dict[str, Values]:
    """The columns of one metric among all that its function computed."""
    if not isinstance(computed, dict):
        return {name: computed}
    return {column: values for column, values in computed.items() if column == name or column.startswith(f"{name}:")}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
