"""No command writes over what it reads, or over what another command wrote; whatever is there stays byte for byte."""

import json
import shutil
from pathlib import Path

import pytest
from files import word_tokenizer, write_backbone

from dual_head import AlignedModel, DualHeadError
from dual_head.cli import main
from dual_head.guides.linear import LinearConfig

FEW = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--eval_strategy", "no", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, pairs_file) -> dict[str, Path]:
    """A backbone, another model, guides saved by hand, and inputs of every kind."""
    root = tmp_path_factory.mktemp("places")
    rows = root / "rows.json"
    rows.write_text(json.dumps([{"input_text": f"ask{i}", "label": "yes" if i % 2 else "no"} for i in range(16)]))
    backbone = write_backbone(root / "backbone")
    tokenizer = word_tokenizer()
    guides = AlignedModel.from_backbone(str(backbone), {"iav": LinearConfig()}, tokenizer=tokenizer)
    guides.save_pretrained(root / "guides")
    tokenizer.save_pretrained(root / "guides")
    return {
        "backbone": backbone,
        "other": write_backbone(root / "other", seed=1),
        "guides": root / "guides",
        "pairs": pairs_file,
        "rows": rows,
    }


DATA = ["--model_name_or_path", "{backbone}", "--dataset_name", "{pairs}"]
COMMANDS = {
    "train": ["train", "hidden", *DATA, *FEW],
    "cache": ["cache", *DATA],
    "compose": ["compose", "a={guides}", "b={other}"],
    "classify train": ["classify", "train", "--model_name_or_path", "{backbone}", "--dataset_name", "{rows}", *FEW],
    "merge": ["merge", "{guides}", "--overwrite"],
}
READS = {
    "train": ["backbone"],
    "cache": ["backbone"],
    "compose": ["guides", "other"],
    "classify train": ["backbone"],
    "merge": ["guides", "backbone"],
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(capsys, command: str, folders: dict[str, Path], output: Path) -> str:
    before = contents(output)
    capsys.readouterr()
    assert main([*(part.format(**folders) for part in COMMANDS[command]), "--output_dir", str(output)]) == 2
    assert contents(output) == before
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("command", "source"), [(name, source) for name in READS for source in READS[name]])
def test_what_a_command_reads_is_not_its_output(command, source, folders, capsys):
    assert "is an input of this command and is not overwritten" in refused(capsys, command, folders, folders[source])


@pytest.mark.parametrize("command", ["train", "cache", "compose", "classify train"])
@pytest.mark.parametrize("model", ["other", "guides"])
def test_a_model_that_something_else_wrote_is_not_replaced(command, model, folders, tmp_path, capsys):
    shutil.copytree(folders[model], tmp_path / "copy")
    assert "which this command did not write and would replace" in refused(capsys, command, folders, tmp_path / "copy")


def test_a_run_record_of_another_command_opens_no_door(folders, tmp_path, capsys):
    """train and classify train call their records by one name."""
    shutil.copytree(folders["guides"], tmp_path / "copy")
    (tmp_path / "copy" / "run.json").write_text("{}")
    said = refused(capsys, "classify train", folders, tmp_path / "copy")
    assert "holds a model of type 'dual_head', which this command did not write" in said


def test_compose_again_replaces_what_it_composed(folders, tmp_path):
    command = ["compose", f"a={folders['guides']}", "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    assert main([*command, "--alpha", "0.5"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["alpha"] == {"a": 0.5}


def test_python_saves_no_guides_over_a_backbone(folders, tmp_path):
    model = AlignedModel.from_backbone(str(folders["backbone"]), {"iav": LinearConfig()})
    shutil.copytree(folders["other"], tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with pytest.raises(DualHeadError, match="holds a model of type 'llama', which this command"):
        model.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == before
