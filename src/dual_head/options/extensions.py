"""Extensions by name: the files of a package of ours, and what other installed distributions add to it.

    GUIDES = discover("dual_head.guides", "GUIDE", noun="guide", check=...)
    GUIDES.names()          every file that ends in `GUIDE = ...`, and every entry point of the group "dual_head.guides"
    GUIDES.load("linear")   that GUIDE; only now is the file imported

An entry point names a module that is written as ours are: `acme = "acme_guides.acme"`, which ends in `GUIDE = ...`.
Broken ones are refused by name when they are used, and keep nothing else from working. Nothing here imports torch.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_head.errors import DualHeadError, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ROOT = Path(__file__).parents[1]


def discover(
    package: str, attribute: str, *, noun: str, check: Callable[[Any], str | None] = lambda _: None
) -> "Extensions":
    """Find extensions: each is a module of `package`, or one that an entry point names, that sets `attribute`.

    noun: what one is, in messages; check: says what is wrong with a value of that attribute, None where nothing is.
    """
    return Extensions(package, attribute, noun, check)


class Extensions:
    """The extensions of one package by name. Nothing is imported until `load`."""

    def __init__(self, package: str, attribute: str, noun: str, check: Callable[[Any], str | None]):
        self.package, self.attribute, self.noun, self._check = package, attribute, noun, check
        self.group = f"dual_head.{package.rpartition('.')[2]}"

    def names(self) -> list[str]:
        """Name every extension, broken ones too."""
        return sorted({*self.files, *self._entry_points()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self, name: str) -> Any:
        """Import an extension. Errors: an unknown name (the nearest is offered), a broken extension."""
        if name in self.files:
            return getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)
        points = self._entry_points()
        if name not in points:
            raise DualHeadError(f"{self.unknown(name)} If another package brings it, install that package.")
        return self._import(points[name])

    def unknown(self, name: str) -> str:
        """Say that there is no extension of this name, and which is nearest."""
        return f"Unknown {self.noun} '{name}'.{did_you_mean(name, self.names())}"

    def load_all(self) -> dict[str, Any]:
        """Import every extension that is not broken, by name."""
        extensions = {name: self.load(name) for name in self.files}
        for name, points in self._entry_points().items():
            with suppress(DualHeadError):
                extensions.setdefault(name, self._import(points))
        return dict(sorted(extensions.items()))

    def summaries(self) -> dict[str, str]:
        """Say what each extension is, in the first line of its docstring; of a broken one, why it is broken."""
        lines = {name: _first_line(source) for name, source in self.files.items()}
        for name, points in self._entry_points().items():
            if name not in self.files:
                lines[name] = self._summary(points)
            else:
                lines[f"{name} ({_origin(points[0])})"] = f"broken: dual-head has a {self.noun} of this name"
        return dict(sorted(lines.items()))

    def description(self, name: str) -> str:
        """The first paragraph of an extension's docstring; it is imported."""
        self.load(name)
        module = f"{self.package}.{name}" if name in self.files else self._entry_points()[name][0].module
        return (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]

    def name_of(self, value: Any) -> str:
        """Name the extension that a class, or an object of it, comes from: the file that defines the class."""
        module = (value if isinstance(value, type) else type(value)).__module__
        home, _, name = module.rpartition(".")
        if home == self.package:
            return name
        names = [name for name, points in self._entry_points().items() if points[0].module == module]
        if not names:
            raise DualHeadError(
                f"'{module}' is not a {self.noun} that can be found again: no entry point of the group '{self.group}' "
                "names that module. Add one to the package that holds it, and install the package."
            )
        return names[0]

    @cached_property
    def files(self) -> dict[str, str]:
        """The sources of this package's modules that set the attribute at their outermost level, by name."""
        folder = ROOT.joinpath(*self.package.split(".")[1:])
        places = [*folder.glob("*.py"), *folder.glob("*/__init__.py")]
        sources = {
            file.parent.name if file.stem == "__init__" else file.stem: file.read_text(encoding="utf-8")
            for file in places
            if file.parent != folder or file.stem != "__init__"
        }
        sets = re.compile(rf"^(?:def |class )?{self.attribute}\b *[=:(]", re.MULTILINE)
        return {name: source for name, source in sorted(sources.items()) if sets.search(source)}

    def _entry_points(self) -> dict[str, "list[EntryPoint]"]:
        """Entry points of other distributions by name, which only one of them should have."""
        from importlib.metadata import entry_points  # slow to import, and most commands need none

        points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            points.setdefault(point.name, []).append(point)
        return points

    def _import(self, points: "list[EntryPoint]") -> Any:
        point = points[0]
        if len(points) > 1:
            raise self._broken(point, f"{' and '.join(map(_origin, points))} both bring one. Uninstall one of them")
        try:
            module = importlib.import_module(point.module)
        except (Exception, SystemExit) as error:
            raise self._broken(point, f"importing it ended in {type(error).__name__}: {error}") from error
        if (value := getattr(module, self.attribute, None)) is None:
            raise self._broken(point, f"it does not set {self.attribute}")
        if flaw := self._check(value):
            raise self._broken(point, flaw)
        return value

    def _broken(self, point: "EntryPoint", reason: str) -> DualHeadError:
        return DualHeadError(
            f"The {self.noun} '{point.name}' of {_origin(point)}, module '{point.module}', is broken: {reason}. "
            "Install another version of that package, or remove it."
        )

    def _summary(self, points: "list[EntryPoint]") -> str:
        try:
            self._import(points)
        except DualHeadError as error:
            return f"broken: {error}"
        return _first_line(importlib.import_module(points[0].module).__doc__ or "")


def _origin(point: "EntryPoint") -> str:
    """The distribution of an entry point, as `pip` lists it."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"


def _first_line(source: str) -> str:
    """The first line of a module's docstring, less the command that it may begin with: "`dual-head x`: "."""
    line = source.strip().split("\n", 1)[0].removeprefix('"""').removesuffix('"""').strip()
    return line.partition("`: ")[2] or line
