"""`dual-head classify evaluate`: a table with intervals, files to go on with, and configs of either kind."""

import json

import pytest
import yaml
from classifiers import some_texts, write_dhrd
from rich.console import Console

from dual_head.classify.calibration import CALIBRATION_FILE
from dual_head.classify.predict import Predictor
from dual_head.classify.train.inputs import load_sets
from dual_head.classify.train.options import ClassifyOptions
from dual_head.cli import main
from dual_head.data import is_held_out

TEXTS = [text for text in some_texts(90) if text]
WRONG = 7  # every so many rows have another label than the first classifier gives


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classifiers, and rows of which the first gets six of seven right."""
    folder = tmp_path_factory.mktemp("evaluate")
    first = write_dhrd(folder)
    write_dhrd(folder, seed=1)
    given = list(Predictor.load(first, device="cpu").predict(TEXTS))
    with (folder / "test.jsonl").open("w") as stream:
        for i, (text, one) in enumerate(zip(TEXTS, given, strict=True)):
            label = ("no", "yes")[one.index if i % WRONG else 1 - one.index]
            stream.write(json.dumps({"id": f"r{i}", "input_text": text, "label": label}) + "\n")
        stream.write('{"input_text": "good0", "label": "perhaps"}\n')
    return folder


def evaluate(place, *arguments) -> None:
    assert main(["classify", "evaluate", *map(str, arguments), "--device", "cpu", "--resamples", "200"]) == 0


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["classify", "evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def summary(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


RIGHT = sum(1 for i in range(len(TEXTS)) if i % WRONG)


def test_one_classifier_has_figures_rows_and_pictures(place, tmp_path, capsys):
    evaluate(place, place / "classifier", "--dataset", place / "test.jsonl", "--output_dir", tmp_path)
    found = summary(tmp_path)
    assert found["classifiers"]["classifier"]["accuracy"]["mean"] == RIGHT / len(TEXTS)
    assert found["data"]["dropped"] == {"unknown label 'perhaps'": 1}
    assert found["differences"] == {}
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(len(TEXTS))]
    assert [row["right"] for row in rows] == [i % WRONG > 0 for i in range(len(TEXTS))]
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    assert (tmp_path / "reliability.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert f"{RIGHT / len(TEXTS):.4f} [" in said
    assert f"always {found['majority']['label']}" in said
    assert "unknown label 'perhaps'" in said


def test_two_classifiers_are_compared_row_by_row(place, tmp_path, capsys):
    both = (place / "classifier", place / "classifier1")
    evaluate(place, *both, "--dataset", place / "test.jsonl", "--output_dir", tmp_path)
    found = summary(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    right = {name: [row["right"] for row in rows if row["classifier"] == name] for name in found["folders"]}
    first, second = right["classifier"], right["classifier1"]
    own = found["differences"]["classifier1"]
    assert own["accuracy"]["difference"] == pytest.approx((sum(second) - sum(first)) / len(TEXTS))
    for metric in ("macro_f1", "nll"):
        means = [found["classifiers"][name][metric]["mean"] for name in ("classifier1", "classifier")]
        assert own[metric]["difference"] == pytest.approx(means[0] - means[1])
        assert own[metric]["interval"][0] < own[metric]["difference"] < own[metric]["interval"][1]
    assert own["only_first"] == sum(a and not b for a, b in zip(first, second, strict=True)) > 0
    said = capsys.readouterr().out
    assert "classifier1 less classifier: accuracy -" in said
    assert f", macro_f1 {own['macro_f1']['difference']:+.4f} [" in said
    assert f"right where the other is not {own['only_second']} times" in said


def test_calibration_is_kept_with_the_classifier(place, tmp_path, capsys):
    own = write_dhrd(tmp_path)
    evaluate(place, own, "--dataset", place / "test.jsonl", "--calibrate")
    kept = json.loads((own / CALIBRATION_FILE).read_text())
    found = summary(own / "evaluation")["classifiers"]["classifier"]["calibration"]
    assert kept["temperature"] == found["temperature"] != 1
    assert Predictor.load(own, device="cpu").temperature == kept["temperature"]
    assert f"T = {kept['temperature']:.3g}" in capsys.readouterr().out


def test_a_temperature_of_rows_that_are_all_right_is_not_kept_and_that_is_said(place, tmp_path, capsys):
    own, right = write_dhrd(tmp_path), tmp_path / "right.jsonl"
    lines = (place / "test.jsonl").read_text().splitlines()[: len(TEXTS)]
    right.write_text("\n".join(line for i, line in enumerate(lines) if i % WRONG))
    evaluate(place, own, "--dataset", right, "--calibrate")
    assert not (own / CALIBRATION_FILE).exists()
    assert "Calibrate on more rows, with errors among them" in capsys.readouterr().out
    found = summary(own / "evaluation")["classifiers"]["classifier"]
    assert found["accuracy"]["mean"] == 1
    assert "calibration" not in found


def test_what_is_no_folder_here_keeps_nothing(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--dataset", place / "test.jsonl", "--device", "cpu")
    assert "Say where to write with --output_dir" in refused(capsys, "org/name", *given)
    written = (*given, "--output_dir", "out", "--calibrate")
    assert "'org/name' is not a folder here" in refused(capsys, "org/name", *written)
    assert "'org/name' is not a folder here" in refused(capsys, place / "classifier", "org/name", *written)
    assert not list(tmp_path.iterdir())


def test_the_readmes_checkpoint_and_a_training_config_do(place, tmp_path):
    config = tmp_path / "dhrd.yaml"
    model, data = {"name_or_path": "gpt2", "num_labels": 2}, {"train_file": "x", "eval_file": str(place / "test.jsonl")}
    config.write_text(yaml.safe_dump({"model": model, "data": data, "training": {"num_epochs": 3}}))
    checkpoint = place / "classifier" / "best_model.pt"
    evaluate(place, "--config", config, "--checkpoint", checkpoint, "--output_dir", tmp_path / "a")
    assert summary(tmp_path / "a")["folders"] == {"classifier": str(place / "classifier")}
    trained = {"dataset_name": str(place / "test.jsonl"), "held_out": 0.5, "output_dir": str(place / "classifier")}
    config.write_text(yaml.safe_dump({"model_name_or_path": "gpt2", **trained}))
    evaluate(place, "--config", config, "--output_dir", tmp_path / "b")
    assert 0.3 < summary(tmp_path / "b")["classifiers"]["classifier"]["rows"] / len(TEXTS) < 0.7


def test_a_config_of_its_own_is_weaker_than_flags(place, tmp_path):
    config = tmp_path / "evaluate.yaml"
    said = {"classifier": str(place / "classifier"), "dataset": "nowhere", "max_rows": 20, "output_dir": str(tmp_path)}
    config.write_text(yaml.safe_dump(said))
    evaluate(place, "--config", config, "--dataset", place / "test.jsonl")
    assert summary(tmp_path)["classifiers"]["classifier"]["rows"] == 20


def test_columns_and_templates_say_how_rows_are_read(place, tmp_path):
    rows = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"claim": row["input_text"], "verdict": row["label"]}) + "\n" for row in rows))
    evaluate(place, place / "classifier", "--dataset", other, "--columns", "input=claim,label=verdict",
             "--output_dir", tmp_path)  # fmt: skip
    assert summary(tmp_path)["classifiers"]["classifier"]["accuracy"]["mean"] == RIGHT / len(TEXTS)
    said = {"dataset": str(other), "columns": {"input": "claim", "label": "verdict"}, "output_dir": str(tmp_path / "a")}
    own, training = tmp_path / "evaluate.yaml", tmp_path / "train.yaml"
    own.write_text(yaml.safe_dump({"classifier": str(place / "classifier"), **said}))
    training.write_text(
        yaml.safe_dump({"eval_dataset_name": str(other), "columns": said["columns"], "num_train_epochs": 3})
    )
    evaluate(place, "--config", own)
    evaluate(place, place / "classifier", "--config", training, "--output_dir", tmp_path / "b")
    assert summary(tmp_path / "a")["classifiers"] == summary(tmp_path / "b")["classifiers"]


def test_the_share_that_training_kept_aside_is_measured_where_rows_share_a_passage(place, tmp_path):
    rows = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()][
        :-1
    ]  # the last is of no class
    passages = [f"passage {i % 10}" for i in range(len(rows))]
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({**row, "passage": own}) + "\n" for row, own in zip(rows, passages, strict=True))
    )
    columns = "input=input_text,label=label,together=passage"
    given = ("--dataset", other, "--columns", columns, "--held_out", "0.5", "--output_dir", tmp_path / "out")
    evaluate(place, place / "classifier", *given)
    options = ClassifyOptions("any", str(other), dataset_split="test", columns=columns, held_out=0.5)
    held_out = load_sets(options, Console(quiet=True)).held_out
    assert summary(tmp_path / "out")["classifiers"]["classifier"]["rows"] == len(held_out)
    assert len(held_out) == sum(is_held_out(passage, 0.5) for passage in passages)


def test_mistakes_are_named(place, tmp_path, capsys):
    given = ("--dataset", place / "test.jsonl", "--device", "cpu", "--output_dir", tmp_path / "out")
    (tmp_path / "bad.yaml").write_text("datset: x\n")
    assert "Did you mean 'dataset'" in refused(capsys, "--config", tmp_path / "bad.yaml")
    assert "which classifier" in refused(capsys, *given)
    assert "--dataset" in refused(capsys, place / "classifier")
    assert "given twice" in refused(capsys, place / "classifier", place / "classifier", *given)
    assert "Did you mean '--dataset'" in refused(capsys, "--datset", "x")
    assert "--columns" in refused(capsys, place / "classifier", *given, "--columns", "text")
    assert "above 0" in refused(capsys, place / "classifier", *given, "--held_out", "1")
    none = refused(capsys, place / "classifier", *given, "--held_out", "1e-9")
    assert "none is in the share of 1e-09 that training held out" in none
    other = write_dhrd(tmp_path, labels=("no", "yes", "perhaps"))
    assert "tells no, yes, perhaps apart" in refused(capsys, place / "classifier", other, *given)
    assert not (tmp_path / "out").exists()
