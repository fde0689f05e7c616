"""docs/reference/commands holds what the commands' help prints."""

import importlib.util
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "help_pages.py"
COMMAND = "Run: python scripts/help_pages.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("help_pages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(script) -> dict[str, str]:
    """What the pages should hold, by file name."""
    return script.pages()


def test_each_commands_help_is_in_its_page(script, pages):
    pinned = re.search(r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if version("transformers") != pinned or sys.version_info[:2] != (3, 11):
        pytest.skip(f"other versions than Python 3.11 and transformers {pinned} word options differently")
    on_disk = {file.name: file.read_text() for file in script.FOLDER.glob("*.md")}
    differing = [name for name in pages.keys() | on_disk.keys() if pages.get(name) != on_disk.get(name)]
    assert not differing, COMMAND


def test_methods_and_commands_below_commands_are_found(pages):
    assert "\n## dual-head train iav\n" in pages["train.md"]
    assert "--lambda_kl, --kl.weight" in pages["train.md"]
    assert "\n## dual-head classify predict\n" in pages["classify.md"]
    assert pages["merge.md"].startswith("# dual-head merge\n")


def test_every_page_is_in_the_navigation(pages):
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert [name for name in pages if f"reference/commands/{name}" not in navigation] == []


def test_a_page_that_differs_is_named_then_written_and_one_of_no_command_removed(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "FOLDER", tmp_path / "commands")
    monkeypatch.setattr(script, "pages", lambda: {"one.md": "1\n", "two.md": "2\n"})
    script.write(tmp_path / "commands" / "two.md", "old\n")
    script.write(tmp_path / "commands" / "gone.md", "3\n")
    monkeypatch.setattr(sys, "argv", ["help_pages.py", "--check"])
    assert script.main() == 1
    assert [line.split("/")[-1] for line in capsys.readouterr().out.split()] == ["gone.md", "one.md", "two.md"]
    monkeypatch.setattr(sys, "argv", ["help_pages.py"])
    assert script.main() == 0
    assert {file.name: file.read_text() for file in (tmp_path / "commands").iterdir()} == {
        "one.md": "1\n",
        "two.md": "2\n",
    }
    monkeypatch.setattr(sys, "argv", ["help_pages.py", "--check"])
    assert script.main() == 0
