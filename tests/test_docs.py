"""What the documents name exists: flags, links, formats. And nothing in the repository names where it was written."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from dual_head.cli import COMMANDS, main
from dual_head.data.formats import FORMATS, load_pairs

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.]*\w)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# In pieces, so that this file does not hold them.
WORKPLACE = ("/" + "work/", "ERRATA" + ".md", "/" + "shared/ERRATA", r"\b[Ff]" + r"arm\b")
EXAMPLE = re.compile(r"^### `([\w-]+)`\n(.*?)```json\n(.*?)\n```", re.DOTALL | re.MULTILINE)
EXAMPLES = EXAMPLE.findall((ROOT / "docs" / "data.md").read_text())


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag that some command's help shows."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["train", "dual_head", "--help_all"]) == 0
        for command in COMMANDS.keys() - {"train"}:
            with pytest.raises(SystemExit):
                main([command, "--help"])
    return set(FLAG.findall(shown.getvalue()))


@pytest.mark.parametrize("page", ["seeds.md", "data.md"])
def test_every_flag_that_is_named_exists(page, flags):
    named = set(FLAG.findall((ROOT / "docs" / page).read_text()))
    assert len(named) > 5
    assert named <= flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page):
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_errata_are_numbered_1_to_15():
    text = (ROOT / "docs" / "seeds.md").read_text()
    assert re.findall(r"^\*\*D(\d+)\.", text, flags=re.MULTILINE) == [str(i) for i in range(1, 16)]


def test_every_format_has_an_example():
    assert [name for name, _, _ in EXAMPLES] == list(FORMATS)


@pytest.mark.parametrize(("name", "said", "row"), EXAMPLES, ids=lambda part: part.split("\n")[0][:20])
def test_an_example_row_is_read_as_its_own_format(name, said, row, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(json.loads(row)))
    objective = "harmless" if FORMATS[name].objectives else None
    pairs, _ = load_pairs(str(file), objective=objective)
    assert pairs == load_pairs(str(file), objective=objective, format=name)[0]
    assert "boil an egg" in str(pairs[0].prompt)
    # In the row of two preferences they contradict each other.
    assert pairs[0].chosen.strip().startswith("No idea" if name == "pku" else "Eight minutes")


def test_no_file_names_where_it_was_written():
    folders = [ROOT / name for name in ("docs", "src", "tests", "examples", "configs", "scripts")]
    files = [*ROOT.glob("*.md"), *(file for folder in folders for file in folder.rglob("*"))]
    texts = {file: file.read_text() for file in files if file.suffix in (".md", ".py", ".yaml", ".toml")}
    assert len(texts) > 20
    found = [(file.name, word) for file, text in texts.items() for word in WORKPLACE if re.search(word, text)]
    assert not found
