"""Extensions by name: the files of one of this project's packages, and those that other distributions add.

    GUIDES = discover("dual_head.guides", "GUIDE", noun="guide", check=...)
    GUIDES.names()          every file that sets `GUIDE = ...`, and every entry point of the group "dual_head.guides"
    GUIDES.load("linear")   that GUIDE; only now is the file imported

An entry point names a module of the same form: `acme = "acme_guides.acme"`, which sets `GUIDE = ...`. A broken one is
refused by name when it is used; all others keep working. Nothing here imports torch.
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
    """Find extensions: each is a module of `package`, or of an entry point, that sets `attribute`.

    noun: what messages call one; check: tells what is wrong with a value of that attribute, None if nothing.
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
        if points := self._entry_points().get(name):
            return self._import(points)
        raise DualHeadError(f"{self.unknown(name)} If another package brings it, install that package.")

    def unknown(self, name: str) -> str:
        """Say that no extension has this name, and which is nearest."""
        return f"Unknown {self.noun} '{name}'.{did_you_mean(name, self.names())}"

    def load_all(self) -> dict[str, Any]:
        """Import every extension that is not broken, by name."""
        extensions = {}
        for name in self:
            with suppress(DualHeadError):
                extensions[name] = self.load(name)
        return extensions

    def summaries(self) -> dict[str, str]:
        """The first line of each extension's docstring; of a broken one, why it is broken."""
        lines = {name: _first_line(source) for name, source in self.files.items()}
        for name, points in self._entry_points().items():
            if name in self.files:
                lines[f"{name} ({_origin(points[0])})"] = f"broken: dual-head has a {self.noun} of this name"
                continue
            try:
                self._import(points)
                lines[name] = _first_line(importlib.import_module(points[0].module).__doc__ or "")
            except DualHeadError as error:
                lines[name] = f"broken: {error}"
        return dict(sorted(lines.items()))

    def description(self, name: str) -> str:
        """The first paragraph of an extension's docstring; it is imported."""
        self.load(name)
        module = f"{self.package}.{name}" if name in self.files else self._entry_points()[name][0].module
        return (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]

    def name_of(self, value: Any) -> str:
        """Name the extension whose file defines a class, or the class of an object."""
        module = (value if isinstance(value, type) else type(value)).__module__
        parent, _, name = module.rpartition(".")
        if parent == self.package:
            return name
        for name, points in self._entry_points().items():
            if points[0].module == module:
                return name
        raise DualHeadError(
            f"'{module}' is not a {self.noun} that can be found again: no entry point of the group '{self.group}' "
            "names that module. Add one to the package that holds it, and install the package."
        )

    @cached_property
    def files(self) -> dict[str, str]:
        """The sources of this package's modules that set the attribute at module level, by name."""
        folder = ROOT.joinpath(*self.package.split(".")[1:])
        places = {file.stem: file for file in folder.glob("*.py") if file.stem != "__init__"}
        places |= {file.parent.name: file for file in folder.glob("*/__init__.py")}
        sources = {name: file.read_text(encoding="utf-8") for name, file in sorted(places.items())}
        assignment = re.compile(rf"^(?:def |class )?{self.attribute}\b *[=:(]", re.MULTILINE)
        return {name: source for name, source in sources.items() if assignment.search(source)}

    def _entry_points(self) -> dict[str, "list[EntryPoint]"]:
        """Entry points of other distributions by name; two distributions with one name are refused on use."""
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


def _origin(point: "EntryPoint") -> str:
    """The distribution of an entry point, as `pip` lists it."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"


def _first_line(source: str) -> str:
    """The first line of a module's docstring, less the command that it may begin with: "`dual-head x`: "."""
    line = source.strip().split("\n", 1)[0].removeprefix('"""').removesuffix('"""').strip()
    return line.partition("`: ")[2] or line
