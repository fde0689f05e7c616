"""The pages of docs/provenance name files that hold what they say, names that import, flags and commands."""

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

import dual_head
from dual_head import AlignedModel, MAVModel
from dual_head.classify.config import DualHeadReasoningConfig
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.cli import COMMANDS as OUR_COMMANDS
from dual_head.cli import classify, main
from dual_head.evaluate.benchmarks import BENCHMARKS
from dual_head.methods import method, method_names
from dual_head.seed_names import COMMANDS, FLAGS, NO_COMMANDS, PYTHON, translate

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"```.*?```", re.DOTALL)
PAGES = {page.stem: FENCED.sub("", page.read_text()) for page in sorted((ROOT / "docs" / "provenance").glob("*.md"))}
PROSE = "\n".join(PAGES.values())
SPAN = re.compile(r"`([^`]+)`")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.]*\w)")
# What a run writes, where the page says so.
WRITTEN = {"run.json", "report.json", "curves.png", "model.safetensors", "config.json"}
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".txt", ".json", ".png", ".safetensors")


def rows(text: str) -> list[list[str]]:
    """Cells of every table's rows, those of heads and rules among them."""
    return [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]


# The first column says what a document has, all else what there is here.
THEIRS = [span for cells in rows(PROSE) for span in SPAN.findall(cells[0])]
OURS = [span for cells in rows(PROSE) for span in SPAN.findall("|".join(cells[1:]))]
OURS += [span for line in PROSE.splitlines() if not line.startswith("|") for span in SPAN.findall(line)]


def is_path(span: str) -> bool:
    return bool(re.fullmatch(r"[\w./-]+", span)) and span.endswith((*SUFFIXES, "/"))


PLACES = sorted({span for span in OURS if is_path(span)} - WRITTEN)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_named_is_there(place):
    assert (ROOT / place).exists()


def test_the_page_names_places():
    assert len(PLACES) > 30


HOMES = re.findall(r"`(\w+)` in `(src/[\w/]+\.py)`", PROSE)


@pytest.mark.parametrize(("name", "file"), HOMES)
def test_a_file_holds_what_is_said_to_be_in_it(name, file):
    module = importlib.import_module(file.removeprefix("src/").removesuffix(".py").replace("/", "."))
    assert getattr(module, name).__module__ == module.__name__


def test_the_page_says_where_each_papers_model_is():
    assert {"DualHeadModel", "IAVModel", "MAVModel", "AlignedModel", "CausalGate", "pool"} <= {
        name for name, _ in HOMES
    }


NAMES = sorted(
    {span.partition("(")[0] for span in OURS if re.match(r"(dual_head\.[\w.]+|[A-Z]\w*[a-z]\w*[\w.]*)(\(|$)", span)}
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_python_imports(name):
    if name in dict(HOMES):
        return
    parts = name.removeprefix("dual_head.").split(".")
    value = dual_head
    for i, part in enumerate(parts):
        if i + 1 < len(parts) and part.islower() and value.__name__.startswith("dual_head"):
            value = importlib.import_module(f"{value.__name__}.{part}")
        else:
            value = getattr(value, part)


def test_the_page_names_python():
    assert {"dual_head.create_mav", "dual_head.classify.train.trainer.ClassifierTrainer"} <= {*NAMES}


@cache
def flags_of(command: str, *more: str) -> frozenset[str]:
    """The flags that a command's help shows, without their dashes; of train, the method's, or all methods'."""
    if command == "train" and more[:1] not in [(name,) for name in method_names()]:
        return frozenset().union(*(flags_of("train", name) for name in method_names()))
    words = [command, *more[:1]] if command in ("train", "classify") else [command]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*words, "--help_all" if words[0] == "train" or words[1:] == ["train"] else "--help"])
    return frozenset(FLAG.findall(shown.getvalue()))


LINES = sorted({span for span in OURS if span.startswith(("dual-head ", "accelerate launch -m dual_head "))})


@pytest.mark.parametrize("line", LINES)
def test_a_command_that_is_named_has_the_flags_that_it_is_given(line):
    words = line.removeprefix("accelerate launch -m dual_head ").removeprefix("dual-head ").replace("\n", " ")
    command, *more = translate(shlex.split(words))
    assert command in OUR_COMMANDS
    if command == "train" and more and not more[0].startswith("-"):
        assert more[0] in method_names()
    if command == "classify":
        assert more[0] in classify.COMMANDS
    if command == "eval" and more and not more[0].startswith("-"):
        assert more[0] in BENCHMARKS.names()
    assert set(FLAG.findall(shlex.join(more))) <= flags_of(command, *more)


SECTIONS = {
    "dual_head": ("dual_head", "generate", "eval", "compose", "sweep"),
    "iav": ("iav", "generate", "eval", "cache"),
    "mav": ("mav", "generate", "inspect"),
    "dhrd": ("classify train",),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_flag_is_one_of_the_commands_of_its_page_and_a_flag_of_the_document_is_known(section):
    text = PAGES[section]
    ours: frozenset[str] = frozenset()
    aliases: set[str] = set()
    for name in SECTIONS[section]:
        command, *more = ("train", name) if name in method_names() else name.split()
        ours |= flags_of(command, *more)
        aliases |= {alias for key, table in FLAGS.items() if key.split()[0] == command for alias in table}
    theirs = {flag for cells in rows(text) for flag in FLAG.findall(cells[0])}
    assert theirs
    assert theirs <= ours | aliases
    said = {flag for cells in rows(text) for span in SPAN.findall("|".join(cells[1:])) for flag in FLAG.findall(span)}
    other = {flag for line in LINES for flag in FLAG.findall(line)}  # of a command that is named beside them
    assert said - other <= ours


def test_every_alias_is_on_the_page():
    words = " ".join(THEIRS) + " " + " ".join(span for span in OURS)
    scripts = {*COMMANDS, *NO_COMMANDS} - {"evaluate"}
    missing = [name for name in scripts if name not in words]
    missing += [name for table in FLAGS.values() for name in table if not re.search(rf"\b{name}\b", PROSE)]
    missing += [name for name in PYTHON if name not in words]
    assert not missing


def test_arguments_that_are_named_are_taken():
    assert {"chat_template", "return_trace", "tokenizer", "alpha"} <= {*AlignedModel.generate.__annotations__}
    assert {"backbone", "switch", "vocab_map"} <= {*AlignedModel.from_pretrained.__annotations__}
    assert {"loss_weight_alpha", "num_labels"} <= {*DualHeadReasoningModel.from_backbone.__annotations__}
    assert "dropout" in DualHeadReasoningConfig.__annotations__
    assert MAVModel.generate_response is AlignedModel.generate


def test_the_defaults_of_a_method_are_those_of_its_column():
    """`--flag` and its last cell, which begins with a number, in the tables of flags of IAV and MAV."""
    for name in ("iav", "mav"):
        text = PAGES[name]
        chosen = method(name)
        defaults = dict(chosen.options()) | dict(chosen.training) | dict(chosen.run)
        checked = 0
        for cells in rows(text):
            flags, last = FLAG.findall("|".join(cells[:2])), cells[-1].strip()
            number = re.match(r"\d[\d.e-]*(?=,|$)", last)
            paths = [path for flag in flags if (path := chosen.symbols.get(flag, flag)) in defaults]
            if len(cells) == 3 and number is not None and paths:
                assert float(number[0]) == defaults[paths[0]], cells
                checked += 1
        assert checked > 5
