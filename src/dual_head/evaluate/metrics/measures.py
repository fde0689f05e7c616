"""Metrics of whole systems: which tools each is measured with, and values stored under all that they depend on."""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dual_head.backbone.fingerprint import digest, tokenizer_fingerprint
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.benchmarks import Benchmark
from dual_head.evaluate.metrics import Measured, Metric, Tools, load_metrics
from dual_head.evaluate.metrics.base import Absent
from dual_head.evaluate.rewards import Reward, load_reward, reward_identity
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.systems.identity import files_digest, sources_digest
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.types import Answer, Question
from dual_head.files.places import atomic_folder, settle
from dual_head.files.reading import read_json

__all__ = ["NO_QUESTION", "Measures", "about", "measure", "stored"]

Stored = TypeVar("Stored")
NO_QUESTION = "there is no question that it is of"
VERSION = 1  # raised when the same key would stand for other values


@dataclass
class Measures:
    """What a run measures all its systems with; nothing is loaded as long as no value is missing.

    rewards: as `load_reward` reads them; embedder: of `Tools`; base: the system under whose model those that are no
    guides are measured; benchmark: of the questions, which says what refuses.
    """

    folder: Path
    rewards: tuple[str, ...] = ()
    embedder: str | None = None
    base: ModelSystem | None = None
    benchmark: Benchmark = field(default_factory=lambda: Benchmark(""))
    device: str | None = None
    batch_size: int = 16
    _loaded: dict[str, Reward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse two rewards of one name, before there is anything to measure."""
        names = list(map(_name, dict.fromkeys(self.rewards)))
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DualHeadError(f"Two rewards are named '{twice}'. Give each folder or function another name.")

    def of(self, system: System, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Measured:
        """Measure one system's answers, or read back what was measured of the very same."""
        return stored(
            self.folder / f"{system.name}.json",
            self._key(system, questions, answers),
            compute=lambda: asdict(measure(questions, answers, self._tools(system))),
            read=lambda row: Measured(row["values"], tuple(row["notes"])),
        )

    def _tools(self, system: System) -> Tools:
        for spec in self.rewards:
            if spec not in self._loaded:
                _, self._loaded[spec] = load_reward(spec, device=self.device or "cpu")
        models: dict[str, Any] = {}
        if isinstance(system, ModelSystem):
            models = {"model": system.model, "alpha": dict(system.alpha) or None, "tokenizer": system.tokenizer}
            if not system.guided and self.base is not None and _same_tokens(system, self.base):
                models["base"] = self.base.model
        return Tools(
            **models,
            rewards={_name(spec): reward for spec, reward in self._loaded.items()},
            embedder=self.embedder,
            refuses=self.benchmark.refuses,
            device=self.device,
            batch_size=self.batch_size,
        )

    def notes(self, systems: Sequence[System]) -> list[str]:
        """Say which plain systems are not measured under the base, as ids are other tokens there."""
        base = self.base
        if base is None:
            return []
        plain = [one for one in systems if isinstance(one, ModelSystem) and not one.guided]
        return [
            f"{one.name} has another tokenizer than {base.name}, so no divergence and no perplexity"
            for one in plain
            if not _same_tokens(one, base)
        ]

    def _key(self, system: System, questions: Sequence[Question], answers: Mapping[str, Answer]) -> str:
        base = self.base.identity if self.base is not None else None
        embedder = self.embedder and (files_digest(self.embedder) or self.embedder)
        special = type(self.benchmark).refuses is not Benchmark.refuses
        tools = [[reward_identity(spec) for spec in self.rewards], embedder, base, special, *_foreign()]
        content = [[asdict(question), asdict(answers[question.id])] for question in questions if question.id in answers]
        return digest([VERSION, sorted(load_metrics()), system.identity, tools, content])


def _same_tokens(one: ModelSystem, other: ModelSystem) -> bool:
    return tokenizer_fingerprint(one.tokenizer) == tokenizer_fingerprint(other.tokenizer)


def _foreign() -> list[str]:
    """Digest of the modules of metrics from other packages, if there are any; `VERSION` is that of our own."""
    modules = {metric.compute.__module__: inspect.getmodule(metric.compute) for metric in load_metrics().values()}
    names = sorted(name for name in modules if not name.startswith("dual_head."))
    return [sources_digest([modules[name] for name in names])] if names else []


def measure(
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    tools: Tools | None = None,
    *,
    metrics: Sequence[str] | None = None,
) -> Measured:
    """Compute metrics of one system's answers {question id: answer}; by default all that there are tools for.

    NaN, infinity and unanswered questions are missing: counted, never averaged. Errors: an unknown metric.
    """
    tools, by_name = tools or Tools(), load_metrics()
    for name in metrics or ():
        _require_metric(name, by_name)
    values: dict[str, dict[str, float | None]] = {}
    notes: list[str] = []
    results: dict[tuple[Any, tuple[str, ...]], Any] = {}  # by function and question ids: metrics may share a function
    for metric in by_name.values() if metrics is None else [by_name[name] for name in metrics]:
        applicable = [question for question in questions if metric.applies(question)]
        replied = [question for question in applicable if question.id in answers]
        if not replied:
            notes.append(f"{metric.name}: {NO_QUESTION}")
            continue
        key = metric.compute, tuple(question.id for question in replied)
        try:
            if key not in results:
                results[key] = metric.compute(replied, [answers[question.id] for question in replied], tools)
        except Absent as reason:
            notes.append(f"{metric.name}: {reason}")
            continue
        columns = results[key] if isinstance(results[key], dict) else {metric.name: results[key]}
        for column, numbers in columns.items():
            if column != metric.name and not column.startswith(f"{metric.name}:"):
                continue
            by_id = dict(zip(key[1], map(_finite, numbers), strict=True))
            values[column] = {question.id: by_id.get(question.id) for question in applicable}
            if missing := sum(value is None for value in values[column].values()):
                notes.append(f"{column}: {missing} of {len(applicable)} replies have no value")
    return Measured(values, tuple(notes))


def about(name: str) -> dict[str, str]:
    """Say what a metric is: {"name", "unit", "better", "about"}. Errors: an unknown one."""
    metric = _require_metric(name.partition(":")[0], load_metrics())
    return {"name": name, "unit": metric.unit, "better": metric.better, "about": metric.about}


def _require_metric(name: str, metrics: Mapping[str, Metric]) -> Metric:
    if name not in metrics:
        raise DualHeadError(f"Unknown metric '{name}'.{did_you_mean(name, metrics)}")
    return metrics[name]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---- values that are stored ------------------------------------------------------------------------------


def stored(
    file: Path, key: str, *, compute: Callable[[], dict[str, Any]], read: Callable[[dict[str, Any]], Stored]
) -> Stored:
    """Read a row of JSON that is stored under this key, else compute and store it; a damaged file is replaced."""
    settle(file.parent)
    with suppress(DualHeadError, KeyError, TypeError, ValueError):
        row = read_json(file, "")
        if row["key"] == key:
            return read(row)
    row = {"key": key, **compute()}
    with atomic_folder(file.parent) as staging:
        (staging / file.name).write_text(json.dumps(row))
    return read(row)


def _name(spec: str) -> str:
    """As `load_reward` names it."""
    return Path(spec).resolve().name if Path(spec).is_dir() else spec.rpartition(":")[2]
