"""Checks an installed dual-head in an environment that has neither the repository nor an extra.

    python -m venv fresh && fresh/bin/pip install dist/*.whl
    fresh/bin/python scripts/check_wheel.py

It imports every module, shows the help of every command, and runs a short `dual-head demo`. A module may
import only packages of the metadata's requirements or, where it draws, of an extra.
"""

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, requires
from pathlib import Path

from help_pages import below, help_of

DEMO = ("--steps", "2", "--pairs", "64", "--prompts", "4", "--batch_size", "8")
EXTRA = re.compile(r"^([\w.-]+).*;\s*extra\s*==")


def main() -> None:
    """Check one thing after the other. Errors: SystemExit that says what is wrong."""
    import dual_head

    home = Path(dual_head.__file__).parent
    if not home.is_relative_to(sys.prefix):
        sys.exit(f"This is the source in {home}, not an installed wheel.")
    for name in (
        "py.typed",
        "demo/toy_backbone/model.safetensors",
        "demo/guides/smollm2/concise/model.safetensors",
        "evaluate/judges/prompts",
        "serve/playground/page.js",
    ):
        if not (home / name).exists():
            sys.exit(f"The wheel lacks {name}.")
    modules = import_all(dual_head)
    print(f"{modules} modules import")
    commands = check_help()
    print(f"{commands} commands show their help")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([Path(sys.executable).parent / "dual-head", "demo", *DEMO], cwd=folder, check=True)
    print(f"dual-head {distribution('dual-head').version} runs")


def import_all(package) -> int:
    """Import every module and return their number. Errors: SystemExit of one that needs what no extra brings."""
    extras = {match[1].replace("-", "_") for line in requires("dual-head") or () if (match := EXTRA.match(line))}
    count = 0
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in extras:
                sys.exit(f"{module.name} imports {error.name}, which the metadata lacks.")
        count += 1
    return count


def check_help(*words: str) -> int:
    """Show the help of a command and of all below it, and return their number. Errors: SystemExit of an empty one."""
    text = help_of(*words)
    if "usage: dual-head" not in text:
        sys.exit(f"'{' '.join(('dual-head', *words))} --help' prints no help: {text}")
    return 1 + sum(check_help(*words, name) for name in below(text))


if __name__ == "__main__":
    main()
