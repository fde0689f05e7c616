"""A run that goes on finds the data it began with, or is refused with what changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from files import write_backbone, write_guides, write_pairs

from dual_head import DualHeadError
from dual_head.cli import main
from dual_head.data import Pair, RowReport, rows_digest
from dual_head.data.files import rows_of_file
from dual_head.data.load import load_pairs
from dual_head.files.places import file_digest
from dual_head.guides.linear import LinearConfig
from dual_head.train.identity import check_same_data, check_same_run


def call(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert call(*arguments) == 2
    return " ".join(capsys.readouterr().err.split())


def train(backbone: Path, pairs: Path, output: Path, *more: Any) -> list[Any]:
    """Two steps, with a checkpoint after the first."""
    source = ("--model_name_or_path", backbone, "--dataset_name", pairs, "--output_dir", output, "--held_out", 0.2)
    return ["train", "iav", *source, "--max_steps", 2, "--save_steps", 1, "--disable_tqdm", "true", *more]


def classify(backbone: Path, rows: Path, output: Path, *more: Any) -> list[Any]:
    source = ("--model_name_or_path", backbone, "--dataset_name", rows, "--output_dir", output)
    sizes = ("--max_input_length", 8, "--max_rationale_length", 8, "--lm_weight", 0)
    return ["classify", "train", *source, *sizes, "--max_steps", 2, "--save_steps", 1, "--disable_tqdm", "true", *more]


def write_rows(file: Path, count: int) -> Path:
    rows = [{"input_text": f"ask{i % 7} good{i % 5}", "label": ("no", "yes")[i % 2]} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [train, classify])
def test_training_goes_on_with_the_data_it_began_with_alone(command, backbone_folder, tmp_path, capsys):
    pytest.importorskip("peft")
    write = write_pairs if command is train else write_rows
    data, output = write(tmp_path / "data.jsonl", 30), tmp_path / "run"
    given = command(backbone_folder, data, output)
    assert call(*given) == 0
    size, whole = data.stat().st_size, data.read_bytes()
    assert json.loads((output / "run.json").read_text())["data"] == {str(data): file_digest(data)}
    shutil.rmtree(output / "checkpoint-2")
    with data.open("a") as stream:
        stream.write(whole.decode().splitlines()[0].replace("good", "bad") + "\n")
    said = refused(capsys, *given)
    assert f"'{data}' had {size} bytes, and has {data.stat().st_size} now" in said
    assert "Put the data back, choose another --output_dir, or add --restart" in said
    data.write_bytes(whole.replace(b"good1", b"good2"))
    assert f"'{data}' has as many bytes as then, and other ones" in refused(capsys, *given)
    assert not (output / "checkpoint-2").exists()
    data.write_bytes(whole)
    assert call(*given) == 0
    assert "Resuming from" in capsys.readouterr().out
    data.write_bytes(whole.replace(b"good1", b"good2"))
    assert call(*given, "--restart") == 0


def test_a_run_recorded_before_data_were_goes_on(backbone_folder, tmp_path, capsys):
    data, output = write_pairs(tmp_path / "data.jsonl", 30), tmp_path / "run"
    given = train(backbone_folder, data, output)
    assert call(*given) == 0
    shutil.rmtree(output / "checkpoint-2")
    record = json.loads((output / "run.json").read_text())
    digests = record.pop("data")
    (output / "run.json").write_text(json.dumps(record))
    assert call(*given) == 0
    assert "Resuming from" in capsys.readouterr().out
    assert json.loads((output / "run.json").read_text())["data"] == digests  # from here on it is recorded


def test_held_out_data_are_data_too(backbone_folder, tmp_path, capsys):
    data, held_out = write_rows(tmp_path / "rows.jsonl", 20), write_rows(tmp_path / "held_out.jsonl", 10)
    given = classify(backbone_folder, data, tmp_path / "run", "--eval_dataset_name", held_out, "--tune", "frozen")
    assert call(*given) == 0
    write_rows(held_out, 11)
    assert f"'{held_out}' had " in refused(capsys, *given)


def test_a_checkpoint_that_is_named_is_of_its_own_data(backbone_folder, tmp_path, capsys):
    data, output = write_pairs(tmp_path / "data.jsonl", 30), tmp_path / "run"
    assert call(*train(backbone_folder, data, output)) == 0
    write_pairs(data, 31)
    again = train(backbone_folder, data, tmp_path / "again", "--resume_from_checkpoint", output / "checkpoint-1")
    assert f"'{output}' was written from other data ('{data}' had" in refused(capsys, *again)


def test_other_features_are_other_data(backbone_folder, tmp_path, capsys):
    data, cache, output = write_pairs(tmp_path / "data.jsonl", 30), tmp_path / "cache", tmp_path / "run"
    keep = ["cache", "--model_name_or_path", backbone_folder, "--dataset_name", data, "--output_dir", cache]
    given = ["train", "iav", "--feature_cache", cache, "--output_dir", output, "--max_steps", 1]
    assert call(*keep) == 0
    assert call(*given) == 0
    assert call(*keep, "--restart") == 0
    assert call(*given) == 0  # of the same pairs
    write_pairs(data, 40)
    assert call(*keep, "--restart") == 0
    assert f"'{cache} [train]' had" in refused(capsys, *given)


# ---- what is recorded --------------------------------------------------------------------------------------


def test_every_file_that_gave_a_row_is_recorded(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "notes.txt"):
        write_pairs(tmp_path / name, 3, seed=ord(name[0]))
    _, drops = load_pairs(str(tmp_path))
    assert drops.sources == {str(tmp_path / name): file_digest(tmp_path / name) for name in ("a.jsonl", "b.jsonl")}
    _, drops = load_pairs(str(tmp_path), max_rows=2)
    assert list(drops.sources) == [str(tmp_path / "a.jsonl")]


def test_a_pipe_is_read_once_and_not_recorded(tmp_path):
    import os
    import threading

    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text('{"a": 1}\n'))
    writer.start()
    drops = RowReport()
    assert [row for row, _ in rows_of_file(tmp_path / "pipe", drops)] == [{"a": 1}]
    writer.join()
    assert not drops.sources


def test_a_data_set_of_the_hub_is_recorded_by_what_it_gave(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"ask{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    pairs, drops = load_pairs("someone/pairs", split="train")
    assert drops.sources == {"someone/pairs [train]": rows_digest(pairs)}
    rows[1]["chosen"] = "better"
    _, changed = load_pairs("someone/pairs", split="train")
    with pytest.raises(DualHeadError, match=r"'someone/pairs \[train\]' has as many rows as then, and other ones"):
        check_same_data(drops.sources, changed.sources, "out")
    del rows[1]
    _, fewer = load_pairs("someone/pairs", split="train")
    with pytest.raises(DualHeadError, match=r"'someone/pairs \[train\]' had 3 rows, and has 2 now"):
        check_same_data(drops.sources, fewer.sources, "out")


def test_rows_are_told_apart_by_content_and_order():
    one, other = Pair("a", "b", "c"), Pair(({"role": "user", "content": "a"},), "b", "c")
    digests = [rows_digest(rows)["sha256"] for rows in ([one, other], [other, one], [one], [one, one])]
    assert len(set(digests)) == 4
    assert rows_digest([one, other]) == rows_digest([Pair("a", "b", "c"), other])


@pytest.mark.parametrize("recorded", [5, [], "x", {"file": 5}, {"file": {}}, {"file": {"bytes": None}}])
def test_a_damaged_record_of_data_is_other_data(recorded):
    with pytest.raises(DualHeadError, match=r"written from other data \('file'"):
        check_same_run({"data": recorded}, {"data": {"file": {"bytes": 1, "sha256": ""}}}, "out")


def test_data_that_were_added_or_left_out_are_named():
    old, new = {"a": {"bytes": 1}}, {"b": {"bytes": 1}}
    with pytest.raises(DualHeadError, match=r"'a' is not read now, and was read then; 'b' is read now, and was not"):
        check_same_run({"data": old}, {"data": new}, "out")


# ---- sweeps ------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_with_the_rewards_and_guides_it_began_with_alone(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = tmp_path / "reward_of_a_sweep.py"
    module.write_text("def length(prompt, reply):\n    return len(reply)\n")
    guides = write_guides(tmp_path / "guides", write_backbone(tmp_path / "backbone"), {"g": LinearConfig(rank=2)})
    prompts = ("--prompt", "ask0", "--alphas", "0,1", "--max_new_tokens", 1)
    given = ("sweep", guides, *prompts, "--reward", "reward_of_a_sweep:length", "--output_dir", tmp_path / "out")
    assert call(*given) == 0
    assert call(*given) == 0
    module.write_text("def length(prompt, reply):\n    return 1 + len(reply)\n")
    assert f"'{module}' had " in refused(capsys, *given)
    assert call(*given, "--restart") == 0
