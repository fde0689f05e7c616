"""What a method is: a guide, objectives and a paper's hyperparameters, as one value.

Options are addressed by path, "guide.rank" or "preference.beta", in YAML, on the command line and here;
a paper's own symbols are aliases of paths.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.fusion import require_fusion
from dual_head.guides import GuideConfig
from dual_head.objectives import Objective, name_of
from dual_head.options import build


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train a guide.

    guide: its configuration; objectives: the terms of the loss; fusion: how the guide joins the logits;
    training: TrainingArguments the paper sets; symbols: {name in the paper: path of the option}.
    """

    name: str
    guide: GuideConfig
    objectives: tuple[Objective, ...]
    fusion: str = "logits"
    training: Mapping[str, Any] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> Iterator[tuple[str, Any]]:
        """List every option as (path, value)."""
        yield "fusion", self.fusion
        for section, part in self._sections().items():
            for f in fields(part):
                yield f"{section}.{f.name}", getattr(part, f.name)

    def with_options(self, values: Mapping[str, Any]) -> "Method":
        """Return this method with options changed, by path or paper symbol.

        Errors: an unknown path (the nearest is offered), a value of the wrong type.
        """
        known = dict(self.options())
        sections: dict[str, dict[str, Any]] = {}
        fusion = self.fusion
        for given, value in values.items():
            path = self.symbols.get(given, given)
            if path not in known:
                raise DualHeadError(
                    f"Unknown option '{given}' of {self.name}.{did_you_mean(given, [*known, *self.symbols])}"
                )
            if path == "fusion":
                require_fusion(value)
                fusion = value
                continue
            section, name = path.split(".", 1)
            sections.setdefault(section, {})[name] = value
        parts = {
            section: build(type(part), {**_shallow(part), **sections.get(section, {})})
            for section, part in self._sections().items()
        }
        objectives = tuple(parts[name_of(objective)] for objective in self.objectives)
        return replace(self, guide=parts["guide"], objectives=objectives, fusion=fusion)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Plain values: {"method": name, "fusion": ..., "guide": {...}, "<objective>": {...}}."""
        parts = {section: asdict(part) for section, part in self._sections().items()}
        return {"method": self.name, "fusion": self.fusion, **parts}

    def _sections(self) -> dict[str, GuideConfig | Objective]:
        return {"guide": self.guide, **{name_of(objective): objective for objective in self.objectives}}


def _shallow(part: Any) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in fields(part)}
