"""Says whether the vLLM plugin, or a module of the library that it imports, changed since its tests last passed.

    python scripts/vllm_changes.py            # ends with 1, and names the files, where there is something to test
    python scripts/vllm_changes.py --record   # writes down the files as they are; `make test-vllm` does when it passes

The record is integrations/vllm/tested.json: {file: SHA-256}. It is committed beside what it is about.
"""

import argparse
import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = Path("integrations/vllm")
RECORD = PLUGIN / "tested.json"
LIBRARY = "dual_head"


def main() -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write down the files as they are")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    args = parser.parse_args()
    files = {str(file): _digest(args.root / file) for file in files_of_interest(args.root)}
    record = args.root / RECORD
    if args.record:
        record.write_text(json.dumps(files, indent=1) + "\n")
        return
    recorded = json.loads(record.read_text()) if record.is_file() else {}
    changed = sorted(name for name in {*files, *recorded} if files.get(name) != recorded.get(name))
    if not changed:
        print("The vLLM plugin and what it imports are as they were tested.")
        return
    shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    print(f"The vLLM plugin is to be tested: changed since its tests last passed: {shown}.")
    raise SystemExit(1)


def files_of_interest(root: Path) -> list[Path]:
    """The plugin's own files, and the library's modules that they import, directly or through others."""
    files = (file for file in (root / PLUGIN).rglob("*") if "egg-info" not in str(file))
    plugin = [file for file in files if file.suffix in (".py", ".toml", ".txt", ".safetensors")]
    waiting = [name for file in plugin if file.suffix == ".py" for name in imported(file, everywhere=True)]
    waiting += [f"{LIBRARY}.guides.{file.stem}" for file in (root / "src" / LIBRARY / "guides").glob("*.py")]
    modules: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name not in modules and (file := module_file(root, name)):
            modules[name] = file
            # Importing a module runs the packages around it, and what it imports at its top.
            waiting += [name.rpartition(".")[0], *imported(file, everywhere=False)]
    return sorted(file.relative_to(root) for file in {*plugin, *modules.values()})


def module_file(root: Path, name: str) -> Path | None:
    """The file of a module of the library; None for what is none."""
    if name.partition(".")[0] != LIBRARY:
        return None
    place = root / "src" / Path(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def imported(file: Path, *, everywhere: bool) -> Iterator[str]:
    """Names of the library that a file imports, at its top or everywhere: of modules, or of things in them."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
