"""A folder is described, and a path that is not there refused, by a process that imports neither torch nor more."""

import json
import shutil
import subprocess
import sys

import pytest

from dual_head import AlignedConfig, AlignedModel, HiddenConfig, RewardHeadConfig
from dual_head.backbone.checkpoint import CONFIG_TYPES, read_values
from dual_head.cli import main
from dual_head.cli.paths import require_paths
from dual_head.config import BackboneConfig

# What no path needs; numpy and rich may be there.
HEAVY = ("torch", "transformers", "datasets", "accelerate")
WATCHED = f"""
import sys
from dual_head.cli import main
code = main(sys.argv[1:])
print(code, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def alone(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", WATCHED, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory):
    from files import write_guides

    folder = tmp_path_factory.mktemp("guides")
    write_guides(folder, backbone_folder, {"g": RewardHeadConfig(num_heads=2, head_dim=4)})
    return folder


def test_a_folder_of_guides_is_described_without_torch(guides):
    shown = alone("inspect", guides)
    assert shown.stderr.splitlines()[-1] == "0 []"
    assert "reward_head" in shown.stdout
    assert "18,656 parameters, d = 32, V = 49, 2 layers" in shown.stdout


COMMANDS = {
    "generate": ["generate", "{gone}", "--prompt", "x"],
    "sweep": ["sweep", "{gone}", "--prompt", "x", "--output_dir", "{out}"],
    "merge": ["merge", "{gone}", "--output_dir", "{out}"],
    "inspect": ["inspect", "{gone}"],
    "compose": ["compose", "a={gone}", "--output_dir", "{out}"],
    "eval": ["eval", "world", "--models", "a={gone}@1.5", "--output_dir", "{out}"],
    "hyphens": ["train", "iav", "--feature-cache", "{gone}", "--output_dir", "{out}"],
    "train": [
        "train",
        "iav",
        "--model_name_or_path",
        "{gone}",
        "--dataset_name",
        "owner/name",
        "--output_dir",
        "{out}",
    ],
    "train on data": ["train", "iav", "--model_name_or_path=owner/name", "--dataset_name", "gone.jsonl"],
    "train from a cache": ["train", "iav", "--feature_cache", "{gone}", "--output_dir", "{out}"],
    "cache": ["cache", "--dataset_name", "owner/name", "--model_name_or_path", "{gone}", "--output_dir", "{out}"],
    "classify": ["classify", "train", "--dataset_name", "{gone}", "--model_name_or_path", "owner/name"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_path_that_is_not_there_is_refused_without_torch(arguments, tmp_path):
    told = alone(*(part.format(gone=tmp_path / "gone", out=tmp_path / "out") for part in arguments))
    said, watched = told.stderr.splitlines()
    assert watched == "2 []"
    assert said.startswith("dual-head: ")
    assert "gone" in said
    assert any(remedy in said for remedy in ("Give ", "Check the path"))


def test_what_may_be_on_the_hub_is_not_refused_as_a_path(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.touch()
    names = ["--model_name_or_path", "owner/name", "--tokenizer=gpt2", "--dataset_name", "owner/name.of-it"]
    require_paths(["iav", *names, "--dataset", str(file), "--output_dir", str(tmp_path / "new"), "--prompt", "/x/y"])


def test_guides_saved_again_record_what_they_cost_now(guides, tmp_path):
    model = AlignedModel.from_pretrained(guides)
    before = model.config.costs["guides"]
    model.attach("edit", HiddenConfig())
    model.save_pretrained(tmp_path)
    after = read_values(str(tmp_path))["costs"]["guides"]
    assert after == {**before, "edit": {"executed": 32 * 64 * 2, "forwards": 0, "reads": "layers last"}}


def test_an_older_folder_that_records_no_costs_is_described_alike(guides, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(guides, older)
    values = json.loads((older / "config.json").read_text())
    del values["costs"]
    (older / "config.json").write_text(json.dumps(values))
    both = [inspected(folder, capsys) for folder in (guides, older)]
    assert both[0] == both[1]


def inspected(folder, capsys) -> dict:
    capsys.readouterr()
    assert main(["inspect", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_names_that_config_json_may_have_are_the_fields_of_the_config():
    fields = {*BackboneConfig.__annotations__, *AlignedConfig.__annotations__} - {"sub_configs", "model_type"}
    assert {*CONFIG_TYPES} == fields
