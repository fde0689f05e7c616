"""What a method is: a guide, what trains it, and a paper's hyperparameters, as one value.

Options are addressed by path, "guide.rank" or "preference.beta", in YAML, on the command line and here;
a paper's own symbols are aliases of paths.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.guides import GuideConfig, guide_class, kind_of
from dual_head.losses import Objective, name_of
from dual_head.losses.kl import Kl
from dual_head.methods.fit import FitOptions
from dual_head.methods.peer import PeerOptions
from dual_head.model.fusion import require_fusion
from dual_head.options import build

KIND = "guide.kind"  # the path of the option that names another kind of guide
PEER = "peer"  # the section of a peer's options
FIT = "fit"  # the section of what is computed in one pass
POLICY = "policy"  # all guides together, which a divergence is of where no second guide is trained


@dataclass(frozen=True, kw_only=True)
class SecondGuide:
    """A guide that a method trains beside its first, where the option of that name is true."""

    name: str
    guide: GuideConfig
    option: str
    trained: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train a guide.

    guide: its configuration; objectives: the terms of the loss; peer: the options of the peer's own trainer
    (`peer`), for a baseline whose loss is theirs and whose objectives are only measured; fit: how the guide is computed
    in one pass, where nothing is trained in steps and objectives are only measured; fusion: how the guide
    joins the logits; second: another guide it can train with this one, which the divergence then holds to the
    backbone; training: TrainingArguments the paper sets; run: our own options it sets; symbols: {name in the
    paper: path of the option}.
    """

    name: str
    guide: GuideConfig
    objectives: tuple[Objective, ...] = ()
    peer: PeerOptions | None = None
    fit: FitOptions | None = None
    fusion: str = "logits"
    second: SecondGuide | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of = next((x.of for x in self.objectives if isinstance(x, Kl)), POLICY)
        names = [POLICY] if self.second is None else [POLICY, self.second.name]
        if of not in names:
            raise DualHeadError(
                f"kl.of of {self.name} must be {' or '.join(names)}, not '{of}'.{did_you_mean(of, names)}"
            )
        kinds = {name_of(x): x.learns_from for x in self.objectives if x.learns_from != "both"}
        if len({*kinds.values()}) > 1:
            lists = ", ".join(f"{name} from {kind}" for name, kind in kinds.items())
            raise DualHeadError(f"The objectives of {self.name} learn from different rows: {lists}. Keep one kind.")
        if self.second is not None and of == self.second.name and not self.second.trained:
            raise DualHeadError(f"kl.of={of} needs the guide '{of}' to be trained. Add {self.second.option}=true.")

    @property
    def learns_from(self) -> str:
        """What its rows are: "pairs", or "feedback", which are single replies with labels."""
        return "feedback" if any(x.learns_from == "feedback" for x in self.objectives) else "pairs"

    def options(self) -> Iterator[tuple[str, Any]]:
        """List every option as (path, value)."""
        yield "fusion", self.fusion
        yield from self._switch().items()
        yield from self._kind().items()
        for section, part in self._sections().items():
            for f in fields(part):
                yield f"{section}.{f.name}", getattr(part, f.name)

    def with_options(self, values: Mapping[str, Any]) -> "Method":
        """Return this method with options changed, by path or paper symbol.

        "guide.kind" takes a guide of another kind with its own options and their defaults.
        Errors: an unknown path (the nearest is offered), a value of the wrong type.
        """
        if self._kind() and (kind := values.get(KIND, kind_of(self.guide))) != kind_of(self.guide):
            return replace(self, guide=guide_class(kind).Config()).with_options(values)
        paths = dict(self.options())
        plain: dict[str, Any] = {"fusion": self.fusion, **self._switch()}
        sections = {
            section: {f.name: getattr(part, f.name) for f in fields(part)} for section, part in self._sections().items()
        }
        chosen = {self.symbols.get(option, option): (option, value) for option, value in values.items()}
        if self._kind():
            chosen.pop(KIND, None)
        for path, (option, value) in chosen.items():
            if path not in paths:
                nearest = did_you_mean(option, [*paths, *self.symbols])
                raise DualHeadError(f"Unknown option '{option}' of {self.name}.{nearest}")
            if path in plain:
                plain[path] = _checked(path, value)
            else:
                section, name = path.split(".", 1)
                sections[section][name] = value
        parts = {section: build(type(part), sections[section]) for section, part in self._sections().items()}
        second = self.second and replace(self.second, trained=plain[self.second.option])
        if second and second != self.second and "kl.of" not in chosen:
            parts["kl"] = replace(parts["kl"], of=second.name if second.trained else POLICY)
        objectives = tuple(parts[name_of(objective)] for objective in self.objectives)
        changes: Any = {"guide": parts["guide"], "objectives": objectives, "second": second}
        return replace(self, fusion=plain["fusion"], peer=parts.get(PEER), fit=parts.get(FIT), **changes)

    def _switch(self) -> dict[str, bool]:
        return {} if self.second is None else {self.second.option: self.second.trained}

    def _kind(self) -> dict[str, str]:
        """The kind of its guide; nothing for a baseline or a fit, which is made for one kind."""
        return {KIND: kind_of(self.guide)} if self.peer is None and self.fit is None else {}

    def as_dict(self) -> dict[str, Any]:
        """Plain values: {"method": name, "fusion": ..., "guide": {"kind", ...}, "<objective>": {...}}."""
        parts = {section: asdict(part) for section, part in self._sections().items()}
        if kind := self._kind():
            parts["guide"] = {"kind": kind[KIND], **parts["guide"]}
        return {"method": self.name, "fusion": self.fusion, **self._switch(), **parts}

    def guides(self) -> dict[str, GuideConfig]:
        """The guides to train, by name: this one, and the second where it is trained too."""
        second = {self.second.name: self.second.guide} if self.second and self.second.trained else {}
        return {self.name: self.guide, **second}

    def _sections(self) -> dict[str, Any]:
        ways = {name: way for name, way in ((PEER, self.peer), (FIT, self.fit)) if way is not None}
        return {"guide": self.guide, **ways, **{name_of(objective): objective for objective in self.objectives}}


def _checked(path: str, value: Any) -> Any:
    if path == "fusion":
        require_fusion(value)
    elif not isinstance(value, bool):
        raise DualHeadError(f"{path} must be true or false, not {value!r}.")
    return value
