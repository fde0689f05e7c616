"""The package of docs/how-to/extend.md brings a guide, a method, a benchmark and a judge.

Each is listed and used; broken ones are refused by name.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dual_head import AlignedModel, DualHeadError
from dual_head.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "extend.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))
PROJECT = tomllib.loads(FILES.pop("pyproject.toml"))
MODULES = {name.removesuffix(".py"): source for name, source in FILES.items()} | {
    "acme_unwritten": '"""A guide that says nothing."""\n\nfrom dual_head.guides import Guide, GuideConfig\n\n\n'
    "class Unwritten(Guide):\n    Config = GuideConfig\n\n\nGUIDE = Unwritten\n",
    "acme_renamed": "from acme_tilted import METHOD as METHOD\n",
    "acme_gone": "import no_such_module\n",
}
BROKEN = {
    "dual_head.guides": {"unwritten": "acme_unwritten"},
    "dual_head.methods": {"renamed": "acme_renamed", "gone": "acme_gone"},
    "dual_head.benchmarks": {"gone": "acme_gone"},
    "dual_head.judges": {"gone": "acme_gone"},
}
POINTS = {group: points | BROKEN[group] for group, points in PROJECT["project"]["entry-points"].items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of an installed package, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("site")
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source)
    info = folder / "acme_align-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-align\nVersion: 2.1\n")
    groups = {group: "\n".join(f"{name} = {points[name]}" for name in points) for group, points in POINTS.items()}
    points = "\n\n".join(f"[{group}]\n{lines}" for group, lines in groups.items())
    (info / "entry_points.txt").write_text(points)
    return folder


@pytest.fixture(scope="module", autouse=True)
def installed(site):
    """Have this process see the package, and forget it afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def guides(installed, backbone_folder, pairs_file, tmp_path_factory) -> Path:
    """A tilt, trained by the command with the package's method."""
    folder = tmp_path_factory.mktemp("tilt") / "out"
    where = ["--model_name_or_path", backbone_folder, "--dataset_name", pairs_file, "--output_dir", folder]
    how = ["--max_steps", 2, "--learning_rate", 0.5, "--start", 0.25, "--report_to", "none"]
    assert main(["train", "tilted", *map(str, [*where, *how])]) == 0
    return folder


def text_of(capsys, *words: str) -> str:
    """What a command prints for --help."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):  # as argparse ends after its help
        assert main([*words, "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_page_has_every_file_of_its_package():
    assert sorted(FILES) == sorted(f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"])


def test_help_lists_what_the_package_brings_and_names_what_is_broken(capsys):
    training, evaluating = text_of(capsys, "train"), text_of(capsys, "eval")
    assert "tilted Tilted: next tokens of chosen replies, learned by a tilt alone." in training
    assert "tilt A tilt: one learned number for each token, whatever the text is." in training
    assert "unwritten broken: The kind of guide 'unwritten' of acme-align 2.1" in training
    assert "gone broken: The method 'gone' of acme-align 2.1" in training
    assert "four Four words to go on from." in evaluating
    assert "shortest The shortest reply is the best one." in evaluating
    assert "gone broken: The judge 'gone' of acme-align 2.1" in evaluating
    assert "--start, --guide.start VALUE" in text_of(capsys, "train", "tilted")


def test_the_packages_guide_is_trained_by_its_method_and_described(guides, capsys):
    (tilt,) = load_file(guides / "model.safetensors").values()
    assert tilt.shape == (49,)
    assert len(tilt.unique()) > 1  # it began at 0.25 everywhere
    assert main(["inspect", str(guides), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guides"]["tilted"]["kind"] == "tilt"


def test_another_process_loads_it_and_says_the_same(guides, site, tmp_path):
    arguments = ["generate", guides, "--prompt", "ask0", "--max_new_tokens", 3, "--output", tmp_path / "out.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    other = [sys.executable, "-m", "dual_head", *map(str, arguments)]
    done = subprocess.run(other, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main([*map(str, arguments)]) == 0
    theirs, ours = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert theirs == ours
    with torch.no_grad():
        model, ids = AlignedModel.from_pretrained(guides), torch.tensor([[1, 2, 3]])
        delta = model(ids, alpha=2.0).logits - model(ids, alpha=0.0).logits
    (tilt,) = load_file(guides / "model.safetensors").values()
    assert torch.allclose(delta, 2 * tilt.expand_as(delta), atol=1e-5)


def test_its_benchmark_asks_and_its_judge_decides(guides, tmp_path):
    models = f"base={guides}@0,tilted={guides}@1"
    arguments = ["eval", "four", "--models", models, "--judge", "shortest", "--output_dir", str(tmp_path)]
    assert main([*arguments, "--max_new_tokens", "4", "--skip_measures"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (pair,) = report["pairs"]
    assert report["benchmark"]["questions"] == pair["wins"] + pair["ties"] + pair["losses"] == 4
    assert report["judge"]["name"] == "shortest"
    lengths = [
        {row["question"]: len(row["replies"][0]) for row in map(json.loads, file.read_text().splitlines())}
        for file in (next((tmp_path / "answers").glob(f"{name}*.jsonl")) for name in ("tilted", "base"))
    ]
    assert pair["wins"] == sum(lengths[0][question] < lengths[1][question] for question in lengths[0])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "gone"], "module 'acme_gone', is broken: importing it ended in ModuleNotFoundError"),
        (["train", "renamed"], "The method 'renamed' is named 'tilted' in its own file"),
        (["train", "tiltd"], "Unknown method 'tiltd'. Did you mean 'tilted'?"),
        (["eval", "gone", "--models", "a=b/c", "--output_dir", "out"], "The benchmark 'gone' of acme-align 2.1"),
    ],
)
def test_what_is_broken_is_refused_by_name(arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reason in refused(capsys, *arguments)


def test_a_broken_judge_is_refused_before_anything_is_asked(guides, tmp_path, capsys):
    arguments = ["eval", "four", "--models", f"base={guides}@0", "--judge", "gone", "--output_dir", tmp_path / "out"]
    assert "The judge 'gone' of acme-align 2.1, module 'acme_gone', is broken" in refused(capsys, *arguments)


def test_without_the_package_its_checkpoint_is_refused_with_the_remedy(guides, site, monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(site)])
    with pytest.raises(DualHeadError, match=r"Unknown kind of guide 'tilt'.*another package brings it, install that"):
        AlignedModel.from_pretrained(guides)
