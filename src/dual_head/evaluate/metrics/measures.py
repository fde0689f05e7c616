"""Metrics of whole systems: which tools each is measured with, and values kept under what they depend on.

It knows systems, metrics and files; nothing of judges.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dual_head.backbone.fingerprint import digest, tokenizer_fingerprint
from dual_head.errors import DualHeadError
from dual_head.evaluate.benchmarks import Benchmark
from dual_head.evaluate.metrics import METRICS, Measured, Tools, about, measure, summary
from dual_head.evaluate.rewards import Reward, load_reward
from dual_head.evaluate.systems.base import System
from dual_head.evaluate.systems.identity import file_sha256, sources_digest
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.types import Answer, Question
from dual_head.files.places import atomic_folder, settle
from dual_head.files.reading import read_json

__all__ = ["Measured", "Measures", "about", "summary"]

VERSION = 1  # raised when the same key would stand for other values


@dataclass
class Measures:
    """What a run measures all its systems with; nothing is loaded before a value is missing.

    rewards: as `load_reward` reads them; embedder: of `Tools`; base: the system under whose model those that are no
    guides are measured; benchmark: of the questions, which says what refuses.
    """

    folder: Path
    rewards: tuple[str, ...] = ()
    embedder: str | None = None
    base: System | None = None
    benchmark: Benchmark = field(default_factory=lambda: Benchmark(""))
    device: str | None = None
    batch_size: int = 16
    _loaded: dict[str, Reward] = field(default_factory=dict)

    def of(self, system: System, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Measured:
        """Measure one system's answers, or read back what was measured of the very same."""
        key = self._key(system, questions, answers)
        file = self.folder / f"{system.name}.json"
        settle(self.folder)
        if (kept := _read(file)) and kept["key"] == key:
            return Measured(kept["values"], tuple(kept["notes"]))
        measured = measure(questions, answers, self._tools(system))
        with atomic_folder(self.folder) as staging:
            row = {"key": key, "values": measured.values, "notes": list(measured.notes)}
            (staging / file.name).write_text(json.dumps(row))
        return measured

    def _tools(self, system: System) -> Tools:
        for spec in self.rewards:
            if spec not in self._loaded:
                name, reward = load_reward(spec, device=self.device or "cpu")
                if name in {_name(other) for other in self._loaded}:
                    raise DualHeadError(f"Two rewards are named '{name}'. Give each folder or function another name.")
                self._loaded[spec] = reward
        models: dict[str, Any] = {}
        if isinstance(system, ModelSystem):
            models = {"model": system.model, "alpha": dict(system.alpha) or None, "tokenizer": system.tokenizer}
            if not system.guided and (base := self._base_of(system)) is not None:
                models["base"] = base
        return Tools(
            **models,
            rewards={_name(spec): reward for spec, reward in self._loaded.items()},
            embedder=self.embedder,
            refuses=self.benchmark.refuses,
            device=self.device,
            batch_size=self.batch_size,
        )

    def _base_of(self, system: ModelSystem) -> Any:
        base = self.base
        if not isinstance(base, ModelSystem) or base.guided:
            return None
        same = tokenizer_fingerprint(base.tokenizer) == tokenizer_fingerprint(system.tokenizer)
        return base.model if same else None

    def _key(self, system: System, questions: Sequence[Question], answers: Mapping[str, Answer]) -> str:
        base = self.base.identity if self.base is not None else None
        embedder = self.embedder and (_files_of(self.embedder) or self.embedder)
        special = type(self.benchmark).refuses is not Benchmark.refuses
        tools = [[_reward_identity(spec) for spec in self.rewards], embedder, base, special]
        content = [[asdict(question), asdict(answers[question.id])] for question in questions if question.id in answers]
        return digest([VERSION, sorted(METRICS), system.identity, tools, content])


def _name(spec: str) -> str:
    """As `load_reward` names it."""
    return Path(spec).resolve().name if Path(spec).is_dir() else spec.rpartition(":")[2]


def _reward_identity(spec: str) -> str:
    """A folder's files; a function's name and the text of its module, so that one that was changed is asked anew."""
    return _files_of(spec) or f"{spec}:{sources_digest([inspect.getmodule(load_reward(spec)[1])])}"


def _files_of(folder: str) -> str:
    """The files of a model's folder, "" where it is none."""
    if not Path(folder).is_dir():
        return ""
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".json", ".safetensors", ".bin"))
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        kept = read_json(file, "")
    except DualHeadError:  # it is measured again
        return None
    return kept if {"key", "values", "notes"} <= kept.keys() else None
