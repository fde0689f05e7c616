"""The modules of the package import each other without a circle, imports for types included."""

import ast
from pathlib import Path

import pytest

import dual_head

PACKAGE = Path(dual_head.__file__).parent


def modules(root: Path) -> dict[str, ast.Module]:
    """{dotted name: its syntax tree} of every module under a package's folder."""
    trees = {}
    for file in root.rglob("*.py"):
        parts = [root.name, *file.relative_to(root).with_suffix("").parts]
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text())
    return trees


def imports(tree: ast.Module, names: set[str]) -> set[str]:
    """Modules among `names` that are imported anywhere: at the top, in a function, or under TYPE_CHECKING."""
    edges = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            edges |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if alias.name != "__version__":  # the root's own, for which nothing that it re-exports is needed
                    edges.add(inner if inner in names else node.module)
    return edges & names


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves through others: what is left when those without imports are taken off."""
    left = {name: edges - {name} for name, edges in graph.items()}
    while leaves := {name for name, edges in left.items() if not edges & left.keys()}:
        left = {name: edges for name, edges in left.items() if name not in leaves}
    # Modules above a circle stay as well: take off those that no other one imports.
    while roots := left.keys() - {edge for edges in left.values() for edge in edges}:
        left = {name: edges for name, edges in left.items() if name not in roots}
    return sorted(left)


def test_no_module_imports_itself_through_others():
    trees = modules(PACKAGE)
    assert len(trees) > 100
    assert circles({name: imports(tree, set(trees)) for name, tree in trees.items()}) == []


@pytest.mark.parametrize(
    "importing",
    [
        "from package.a import x",
        "from package import a",
        "import package.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.a import x",
        "def f():\n    from package.a import x",
    ],
)
def test_every_way_to_import_closes_a_circle(importing, tmp_path):
    root = tmp_path / "package"
    root.mkdir()
    files = {"__init__": "", "top": "import package.a", "a": "import package.b", "b": importing, "low": "import os"}
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    trees = modules(root)
    assert circles({name: imports(tree, set(trees)) for name, tree in trees.items()}) == ["package.a", "package.b"]


def test_no_module_keeps_a_table_of_objects():
    """What belongs to a model, a layer or a weight lives on it, and goes with it. Tables by name are registries."""
    tables = []
    for name, tree in modules(PACKAGE).items():
        for node in tree.body:
            value = getattr(node, "value", None) if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
            empty = isinstance(value, ast.Dict) and not value.keys
            by_name = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("dict[str, ")
            if called.split(".")[-1].startswith("Weak") or (empty and not by_name):
                tables.append(f"{name}: {ast.unparse(node)}")
    assert tables == []


def test_no_method_names_another_class_as_its_self():
    for name, tree in modules(PACKAGE).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.arguments) and node.args and node.args[0].arg == "self":
                assert node.args[0].annotation is None, name
