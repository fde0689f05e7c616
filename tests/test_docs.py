"""What the documents name exists: flags, commands, links, formats, figures; what they print of Python runs.

And nothing in the repository names where it was written.
"""

import contextlib
import io
import json
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from test_readme import BLOCK
from transformers import AutoModelForCausalLM, LlamaConfig, TrainingArguments

import dual_head
from dual_head import LinearConfig, PromptContrastConfig, RewardHeadConfig, method
from dual_head.backbone.decoder import Backbone
from dual_head.cli import COMMANDS, classify, main
from dual_head.data.formats import FORMATS, SCORE
from dual_head.data.load import load_feedback, load_pairs
from dual_head.guides import GuideConfig, guide_class, kind_of, kinds
from dual_head.guides.base import Parameters
from dual_head.methods import method_names
from dual_head.options.flags import OptionParser
from dual_head.options.texts import parse_alpha
from dual_head.seed_names import FLAGS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
GUIDES_PAGE = (ROOT / "docs" / "reference" / "guides.md").read_text()
TABLE_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.]*\w)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# In pieces, so that this file does not hold them.
WORKPLACE = ("/" + "work/", "ERRATA" + ".md", "/" + "shared/ERRATA", r"\b[Ff]" + r"arm\b")
EXAMPLE = re.compile(r"^### `([\w-]+)`\n(.*?)```json\n(.*?)\n```", re.DOTALL | re.MULTILINE)
EXAMPLES = EXAMPLE.findall((ROOT / "docs" / "reference" / "data.md").read_text())


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag that some command's help shows."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for name in method_names():
            assert main(["train", name, "--help_all"]) == 0
        for command in ("train", "compare"):
            assert main(["classify", command, "--help_all"]) == 0
        for command in set(COMMANDS) - {"train", "classify"}:
            with pytest.raises(SystemExit):
                main([command, "--help"])
        for command in set(classify.COMMANDS) - {"train", "compare"}:
            with pytest.raises(SystemExit):
                main(["classify", command, "--help"])
    return set(FLAG.findall(shown.getvalue()))


SCRIPT = re.compile(r"^ *(?:python \S+\.py|python -m \S+|inspect eval)(?:.*\\\n)*.*$", re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [
        "provenance/iav.md",
        "provenance/mav.md",
        "reference/data.md",
        "how-to/guides.md",
        "how-to/evaluate.md",
        "how-to/classify.md",
        "how-to/serving.md",
    ],
)
def test_every_flag_that_is_named_exists(page, flags):
    text = SCRIPT.sub("", (ROOT / "docs" / page).read_text())  # scripts and other tools have flags of their own
    named = set(FLAG.findall(text))
    assert len(named) > 5
    aliases = {name for table in FLAGS.values() for name in table}
    assert named <= (flags | aliases if page.startswith("provenance/") else flags)


COMMAND = re.compile(r"^ *dual-head (\w+ .*)$", re.MULTILINE)
LINES = [
    pytest.param(line, id=f"{page.name}: {line[:50]}")
    for page in PAGES
    if page.name != "extend.md"  # of a package that tests/test_outside_package.py installs, and uses in this way
    for line in COMMAND.findall(page.read_text().replace("\\\n", " "))
]


class Parsed(Exception):
    """A command read its arguments and would now begin."""


@pytest.mark.parametrize("line", LINES)
def test_every_command_that_is_shown_is_understood(line, monkeypatch):
    read = OptionParser.namespace

    def parse_only(parser, arguments):
        values = read(parser, arguments)
        if any(issubclass(cls, TrainingArguments) for cls in parser.classes):
            return values
        if isinstance(alpha := getattr(values, "alpha", None), str):  # one that is a number has been read
            parse_alpha(alpha)
        raise Parsed

    def train(*_):
        raise Parsed

    monkeypatch.setattr(OptionParser, "namespace", parse_only)
    monkeypatch.setattr("dual_head.cli.paths.require_paths", lambda *_: None)  # those of the pages are not here
    monkeypatch.setattr("dual_head.train.run.train_guide", train)
    monkeypatch.setattr("dual_head.cli.classify.train.train_classifier", train)
    monkeypatch.setattr("dual_head.classify.train.compare.plan_of", train)
    monkeypatch.chdir(ROOT)  # where the configs are that some of them name
    with pytest.raises(Parsed):
        main(shlex.split(line))


@pytest.mark.parametrize(("page", "least"), [("how-to/guides.md", 6), ("tutorial.md", 1)])
def test_the_python_of_a_page_runs_in_an_empty_folder(page, least, tmp_path, monkeypatch):
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    assert len(blocks) >= least
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for i, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {i + 1}", "exec"), names)


def test_the_figures_of_the_page_on_guides_are_counted():
    rows = [[cell.strip() for cell in row.split("|")] for row in TABLE_ROW.findall(GUIDES_PAGE)]
    stated = {row[1]: row[3:7] for row in rows if len(row) == 8 and "at 7B" not in row}
    named = {
        "`reward_head`": "dual_head",
        "`linear`": "iav",
        "`multilayer`": "mav",
        "`hidden`": "hidden",
        "`language_model`, genarm": "genarm",
        "`language_model`, dpo and simpo": "dpo",
        "`steering`": "steering",
        "`reward_model`": "reward",
    }
    assert method("dpo").guide == method("simpo").guide
    for row, name in named.items():
        trained, executed, forwards, layers = count_at_7b(method(name).guide)
        stated_trained, stated_executed, stated_forwards, stated_layers = stated[row]
        assert stated_trained == f"{trained:,}", name
        assert ("the same" if executed == trained else f"{executed:,}") in stated_executed, name
        assert float(stated_forwards) == forwards, name
        assert stated_layers.split(",")[0] == ("L" if layers == 32 else str(layers)), name
    for row, prompts in {"two prompts": {"positive": [1]}, "one prompt against the request": {}}.items():
        config = PromptContrastConfig(negative=[2], **prompts)
        _, executed, forwards, layers = count_at_7b(config)
        assert f"{executed:,}" in stated[f"`prompt_contrast`, {row}"][1]
        assert float(stated[f"`prompt_contrast`, {row}"][2].split(",")[0]) == forwards
        assert layers == 32 * len(config.prompts) + 1
    for config in (LinearConfig(rank=64), RewardHeadConfig(rank=64)):
        assert f"{count_at_7b(config)[0]:,}" in GUIDES_PAGE


def test_the_page_on_guides_has_every_kind_and_every_method():
    assert all(f"`{kind}`" in GUIDES_PAGE for kind in kinds())
    assert all(f"`train {name}`" in GUIDES_PAGE for name in method_names())


def count_at_7b(config: GuideConfig) -> tuple[int, int, float, int]:
    """Parameters trained, parameters executed, forwards and cache layers of a guide beside LLaMA-2-7B."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(LlamaConfig())
        backbone = Backbone(lm)
        assert (backbone.shape.hidden_size, backbone.shape.vocab_size, backbone.shape.num_layers) == (4096, 32000, 32)
        guide = guide_class(kind_of(config))(config, backbone.shape)
        guide.attach(backbone)
    trained = sum(tensor.numel() for tensor in guide.stored().values())
    return trained, guide.executed(trained, Parameters.of(lm)), guide.extra_forwards, guide.cache_layers


# The one of classifiers is of no method, and tests/test_cli.py reads it.
METHOD_CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "dhrd.yaml"})


@pytest.mark.parametrize("file", METHOD_CONFIGS, ids=lambda file: file.stem)
def test_a_config_says_what_is_not_the_default_and_where_it_is_from(file):
    text = file.read_text()
    values = yaml.safe_load(text)
    chosen = method(values["method"])
    assert file.stem == chosen.name
    assert text.startswith("# ")
    assert f"dual-head train {chosen.name} --config configs/{file.name}" in text
    known = dict(chosen.options()) | dict(chosen.training) | dict(chosen.run)
    options = {
        f"{key}.{name}": value
        for key, section in values.items()
        if isinstance(section, dict)
        for name, value in section.items()
    }
    chosen.with_options(options)
    stated = {key: value for key, value in values.items() if not isinstance(value, dict)} | options
    defaults = {key: known[path] for key in stated if (path := chosen.symbols.get(key, key)) in known}
    assert not [key for key, value in defaults.items() if yaml_number(stated[key]) == value]


def yaml_number(value):
    """5e-5 is a text in YAML, and a number to the command line."""
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return value


def test_every_method_has_a_config():
    assert {file.stem for file in METHOD_CONFIGS} == set(method_names())


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


@pytest.mark.parametrize(("letter", "count"), [("D", 15), ("I", 7), ("M", 6)])
def test_the_errata_are_numbered_without_a_gap(letter, count):
    text = (ROOT / "docs" / "provenance" / "differences.md").read_text()
    numbers = re.findall(rf"^\*\*{letter}(\d+)\.", text, flags=re.MULTILINE)
    assert numbers == [str(i) for i in range(1, count + 1)]


def test_the_reference_of_python_has_every_public_name():
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference" / "api").glob("*.md"))
    assert set(re.findall(r"^::: dual_head\.(\w+)$", text, re.MULTILINE)) == {*dual_head.__all__}


def test_the_packages_of_the_page_on_the_source_are_there():
    table = (ROOT / "docs" / "reference" / "source.md").read_text().partition("| folder |")[0]
    named = {name for row in TABLE_ROW.findall(table) for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    packages = {file.parent.name for file in (ROOT / "src" / "dual_head").glob("*/__init__.py")}
    assert named == packages


# Of our own tree; pages on provenance name other trees too, and tests/papers/test_provenance.py reads them.
SOURCE_PAGES = [page for page in PAGES if page.parent.name not in ("provenance", "commands")] + [
    ROOT / "CONTRIBUTING.md"
]
TREE = ("src/dual_head", "tests", "examples", "experiments", "benchmarks", "scripts", "configs")
PLACE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(TREE)})/[\w./-]*\w")
DOTTED = re.compile(r"(?<![\w/])dual_head(?:\.[A-Za-z_]\w*)+")
# Groups of entry points, which are no modules.
GROUPS = {f"dual_head.{name}" for name in ("benchmarks", "systems", "judges", "metrics")}


@pytest.mark.parametrize("page", SOURCE_PAGES, ids=lambda page: page.name)
def test_every_file_and_module_that_a_page_names_is_there(page):
    text = page.read_text()
    assert [place for place in PLACE.findall(text) if not place.endswith("/x.py") and not (ROOT / place).exists()] == []
    assert [name for name in set(DOTTED.findall(text)) - GROUPS if not is_there(name)] == []


def is_there(name: str) -> bool:
    """Tell whether a dotted name is a module, or an attribute of one."""
    with contextlib.suppress(ImportError, AttributeError):
        pkgutil.resolve_name(name)
        return True
    return False


def test_every_format_has_an_example():
    assert [name for name, _, _ in EXAMPLES] == list(FORMATS)


@pytest.mark.parametrize(("name", "text", "row"), EXAMPLES, ids=lambda part: part.split("\n")[0][:20])
def test_an_example_row_is_read_as_its_own_format(name, text, row, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(json.loads(row)))
    objective = "harmless" if FORMATS[name].objectives else None
    if FORMATS[name].judged_by:
        threshold = {"label_threshold": 0.5} if FORMATS[name].judged_by == SCORE else {}
        (reply,), _ = load_feedback(str(file), **threshold)
        assert [reply] == load_feedback(str(file), format=name, **threshold)[0]
        assert "boil an egg" in str(reply.prompt)
        assert (reply.completion.strip(), reply.label) == ("Eight minutes.", True)
        return
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
    named = [(file.name, word) for file, text in texts.items() for word in WORKPLACE if re.search(word, text)]
    assert not named
