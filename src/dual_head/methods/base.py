"""What a method is: a guide, what trains it, and a paper's hyperparameters, as one value.

Options are addressed by path, "guide.rank" or "preference.beta", in YAML, on the command line and here;
a paper's own symbols are aliases of paths.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.fusion import require_fusion
from dual_head.guides import GuideConfig
from dual_head.guides.linear import LinearConfig
from dual_head.losses import Objective, name_of
from dual_head.options import build
from dual_head.tuning import PeerOptions

PEER = "peer"  # the section of a peer's options
BASE_HEAD = "base_head"  # name of the guide that is IAV's trained base head, less the backbone's own


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train a guide.

    guide: its configuration; objectives: the terms of the loss; peer: the options of the peer's own trainer
    (`tuning`), for a baseline whose loss is theirs and whose objectives are only measured; fusion: how the guide
    joins the logits; train_base_head: also train a head beside the backbone's own, None where the method has no
    such option; training: TrainingArguments the paper sets; run: our own options it sets; symbols: {name in the
    paper: path of the option}.
    """

    name: str
    guide: GuideConfig
    objectives: tuple[Objective, ...] = ()
    peer: PeerOptions | None = None
    fusion: str = "logits"
    train_base_head: bool | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> Iterator[tuple[str, Any]]:
        """List every option as (path, value)."""
        yield "fusion", self.fusion
        if self.train_base_head is not None:
            yield "train_base_head", self.train_base_head
        for section, part in self._sections().items():
            for f in fields(part):
                yield f"{section}.{f.name}", getattr(part, f.name)

    def with_options(self, values: Mapping[str, Any]) -> "Method":
        """Return this method with options changed, by path or paper symbol.

        Errors: an unknown path (the nearest is offered), a value of the wrong type.
        """
        known = dict(self.options())
        sections: dict[str, dict[str, Any]] = {}
        own = {"fusion": self.fusion, "train_base_head": self.train_base_head}
        for given, value in values.items():
            path = self._path(given)
            if path not in known:
                raise DualHeadError(
                    f"Unknown option '{given}' of {self.name}.{did_you_mean(given, [*known, *self.symbols])}"
                )
            if path in own:
                own[path] = _checked(path, value)
                continue
            section, name = path.split(".", 1)
            sections.setdefault(section, {})[name] = value
        parts = {
            section: build(type(part), {**_shallow(part), **sections.get(section, {})})
            for section, part in self._sections().items()
        }
        if own["train_base_head"] != self.train_base_head and "kl.of" not in map(self._path, values):
            of = "base_head" if own["train_base_head"] else "policy"
            parts["kl"] = replace(parts["kl"], of=of)  # type: ignore[type-var, call-arg]
        if getattr(parts.get("kl"), "of", None) == "base_head" and not own["train_base_head"]:
            raise DualHeadError("kl.of=base_head is that of a trained base head. Add iav's train_base_head=true.")
        objectives = tuple(parts[name_of(objective)] for objective in self.objectives)
        peer = parts.get(PEER)
        return replace(self, guide=parts["guide"], objectives=objectives, peer=peer, **own)  # type: ignore[arg-type]

    def _path(self, given: str) -> str:
        return self.symbols.get(given, given)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: {"method": name, "fusion": ..., "guide": {...}, "<objective>": {...}}."""
        parts = {section: asdict(part) for section, part in self._sections().items()}
        base_head = {} if self.train_base_head is None else {"train_base_head": self.train_base_head}
        return {"method": self.name, "fusion": self.fusion, **base_head, **parts}

    def guides(self) -> dict[str, GuideConfig]:
        """The guides to train, by name: this one, and the base head where it is trained too."""
        return {self.name: self.guide, **({BASE_HEAD: LinearConfig()} if self.train_base_head else {})}

    def _sections(self) -> dict[str, Any]:
        peer = {} if self.peer is None else {PEER: self.peer}
        return {"guide": self.guide, **peer, **{name_of(objective): objective for objective in self.objectives}}


def _checked(path: str, value: Any) -> Any:
    if path == "fusion":
        require_fusion(value)
    elif not isinstance(value, bool):
        raise DualHeadError(f"{path} must be true or false, not {value!r}.")
    return value


def _shallow(part: Any) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in fields(part)}
