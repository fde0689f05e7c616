"""Writes the pages of docs/reference/commands: what `--help` prints, one page for each command.

    python scripts/help_pages.py           # write the pages, and remove those of commands that are gone
    python scripts/help_pages.py --check   # write nothing; end with 1 where a page differs

Commands and methods are read from the command line's own help. The pages are written on the versions that
constraints.txt pins: other versions of Python and transformers word some options differently.
"""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "reference" / "commands"
LISTED = re.compile(r"^  (\w+) {2,}\S", re.MULTILINE)
BLOCK = re.compile(r"^(?:commands|methods):\n(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


def help_of(*words: str) -> str:
    """Return what `dual-head WORDS --help` prints."""
    from dual_head.cli import main

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


def below(text: str) -> list[str]:
    """Return the commands, or methods, that a help text lists."""
    block = BLOCK.search(text)
    return LISTED.findall(block[1]) if block else []


def sections(*words: str) -> Iterator[tuple[str, str]]:
    """Yield the title and the help text of a command, then those of everything below it."""
    text = help_of(*words)
    yield " ".join(("dual-head", *words)), text
    for name in below(text) if words else ():
        yield from sections(*words, name)


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    os.environ["COLUMNS"] = "110"
    texts = {"index": [("dual-head", help_of())]}
    texts |= {name: list(sections(name)) for name in below(help_of())}
    return {f"{name}.md": page(parts) for name, parts in texts.items()}


def page(parts: list[tuple[str, str]]) -> str:
    """Return one page: a heading and a block of text for each command."""
    blocks = []
    for i, (title, text) in enumerate(parts):
        blocks.append(f"{'##' if i else '#'} {title}\n\n```text\n{text}\n```\n")
    return "\n".join(blocks)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page differs")
    check = parser.parse_args().check
    texts = pages()
    on_disk = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.md")}
    differing = sorted(name for name in texts.keys() | on_disk.keys() if texts.get(name) != on_disk.get(name))
    for name in differing:
        print(f"docs/reference/commands/{name}")
        if not check:
            write(FOLDER / name, texts.get(name))
    return 1 if check and differing else 0


def write(file: Path, text: str | None) -> None:
    """Write a page, or remove it where its command is gone."""
    if text is None:
        file.unlink()
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
