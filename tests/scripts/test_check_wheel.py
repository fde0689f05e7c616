"""The wheel, in a fresh environment without the repository: it runs, and imports nothing that its metadata lacks."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = METADATA["project"], METADATA["tool"]
NAME = re.compile(r"^[\w.-]+")


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", NAME.match(requirement)[0]).lower()


CORE = {normal(line) for line in PROJECT["dependencies"]}
EXTRAS = {
    extra: {normal(line) for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
    if extra not in ("dev", "docs")  # nothing that runs may come from them
}
DISTRIBUTIONS = packages_distributions()


def imports(tree: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every import by the name of its root package, and whether it stands in a function or is for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], inside
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from imports(node, inside=inside or function or types_only)


def asked_for(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The package and the extra of every `require("package", "extra")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if len(values) == 2:
                yield values[0].partition(".")[0], values[1]


def declared(name: str, requirements: set[str]) -> bool:
    return any(normal(each) in requirements for each in DISTRIBUTIONS.get(name, [name]))


SOURCES = {file: ast.parse(file.read_text()) for file in (ROOT / "src" / "dual_head").rglob("*.py")}
# Imported late: modules that draw, where `plot` is there, and those of the server, after it required `serve`.
DRAW = {"matplotlib"}
SERVER = {"openai", "playground"}
PROVIDER = "inspect_provider.py"  # Inspect itself imports it


def importable(file: Path, inside: bool) -> set[str]:
    """The requirements that a module may import: of the core, and of extras where the import comes late."""
    if inside:
        return CORE.union(*EXTRAS.values())
    if file.name == PROVIDER:
        return CORE | EXTRAS["inspect"]
    return CORE | EXTRAS["serve"] if file.parent.name in SERVER else CORE


def test_what_is_imported_is_in_the_metadata():
    missing = {
        (file.name, name)
        for file, tree in SOURCES.items()
        for name, inside in imports(tree)
        if name not in sys.stdlib_module_names | {"dual_head"}
        and not declared(name, importable(file, inside or name in DRAW))
    }
    assert not missing


def test_what_is_asked_for_by_an_extra_is_in_that_extra():
    pairs = {pair for tree in SOURCES.values() for pair in asked_for(tree)}
    assert len(pairs) > 5
    assert {(name, extra) for name, extra in pairs if not declared(name, EXTRAS[extra])} == set()


def test_a_package_that_no_metadata_names_is_seen():
    tree = ast.parse("import torch\ndef f():\n    import pytest.raises\n    require('trl', 'plot')")
    assert list(imports(tree)) == [("torch", False), ("pytest", True)]
    assert declared("torch", CORE)
    assert not declared("pytest", CORE.union(*EXTRAS.values()))
    assert list(asked_for(tree)) == [("trl", "plot")]
    assert not declared("trl", EXTRAS["plot"])


def test_every_file_that_is_not_python_is_in_the_wheel():
    package_data = TOOLS["setuptools"]["package-data"]
    root = ROOT / "src" / "dual_head"
    packed = {
        file
        for package, globs in package_data.items()
        for glob in globs
        for file in (ROOT / "src" / package.replace(".", "/")).glob(glob)
        if file.is_file()
    }
    guides = root / "demo" / "guides"  # a link to the published ones
    tracked = subprocess.run(["git", "ls-files", root, guides.resolve()], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a clone")
    files = {ROOT / name for name in tracked.stdout.split()} - {guides}
    expected = {file for file in files if file.suffix != ".py" or file.is_relative_to(guides.resolve())}
    assert {file.resolve() for file in packed} == expected


@pytest.mark.slow
def test_a_wheel_in_a_fresh_environment_runs_without_the_repository(tmp_path):
    def run(*command: str | Path) -> None:
        subprocess.run([*map(str, command)], cwd=tmp_path, check=True)

    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=lambda folder, names: [n for n in names if n.startswith(".") or n == "out"])
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source)
    shutil.rmtree(source)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    run(sys.executable, "-m", "venv", "fresh")
    python = tmp_path / "fresh" / "bin" / "python"
    for what in ("torch", wheel):
        run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", what)
    for name in ("check_wheel.py", "help_pages.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path)
    run(python, tmp_path / "check_wheel.py")
