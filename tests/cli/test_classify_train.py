"""`dual-head classify train`: from rows to a classifier, resumed, configured, and tracked."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from files import ASKED, BAD, GOOD
from safetensors.torch import load_file

from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.train.run import ClassifierRun
from dual_head.cli import main
from dual_head.cli.classify.train import build_parser

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs with a good or a bad word, which is their label; half of them say why."""
    rng = random.Random(0)
    found = []
    for i in range(60):
        label = i % 2
        word = rng.choice(GOOD if label else BAD)
        row = {"input_text": f"{rng.choice(ASKED)} {word}", "label": "yes" if label else "no"}
        found.append(row | ({"rationale": f"i can {word}"} if i % 4 else {}))
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps(found))
    return file


def arguments(backbone: Path, rows: Path, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", str(backbone), "--dataset_name", str(rows), "--output_dir", str(output)]
    sizes = ["--max_input_length", "12", "--max_rationale_length", "24", "--per_device_train_batch_size", "8"]
    return ["classify", "train", *given, *sizes, "--disable_tqdm", "true", *more]


def refused(capsys, given: list[str]) -> str:
    capsys.readouterr()
    assert main(given) == 2
    return " ".join(capsys.readouterr().err.split())


def test_it_learns_and_says_how_well_on_what_it_held_out(backbone_folder, rows, tmp_path, capsys):
    more = ["--max_steps", "40", "--learning_rate", "1e-2", "--held_out", "0.3", "--tune", "full"]
    assert main(arguments(backbone_folder, rows, tmp_path, *more)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["held_out"]["accuracy"]["mean"] > report["majority"]
    assert report["data"]["notes"]["rows without a rationale"] > 0
    logged = [row for row in report["log"] if "cls_loss" in row and "loss" in row]
    for row in logged:
        assert row["loss"] == pytest.approx(row["cls_loss"] + row["lm_loss"], rel=1e-3)
    model = DualHeadReasoningModel.from_pretrained(tmp_path)
    assert model.config.id2label == {0: "no", 1: "yes"}
    said = capsys.readouterr().out
    assert "always the most frequent label" in said
    count = report["held_out"]["rows"]
    assert (f"Only {count} held-out rows" in said) is (count < 20)


def test_a_stopped_run_goes_on_and_ends_like_one_that_was_not(backbone_folder, rows, tmp_path, capsys, monkeypatch):
    more = ["--max_steps", "6", "--save_steps", "2", "--eval_strategy", "no"]
    assert main(arguments(backbone_folder, rows, tmp_path / "whole", *more)) == 0

    from dual_head.classify.train.trainer import ClassifierTrainer

    step = ClassifierTrainer.training_step

    def killed(self, *inputs, **named):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *inputs, **named)

    monkeypatch.setattr(ClassifierTrainer, "training_step", killed)
    assert main(arguments(backbone_folder, rows, tmp_path / "stopped", *more)) == 130
    monkeypatch.undo()
    assert main(arguments(backbone_folder, rows, tmp_path / "stopped", *more)) == 0
    assert "Resuming from" in capsys.readouterr().out
    whole, stopped = (DualHeadReasoningModel.from_pretrained(tmp_path / name).stored() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    said = refused(capsys, arguments(backbone_folder, rows, tmp_path / "stopped", *more, "--seed", "7"))
    assert "--restart" in said


def test_a_run_killed_after_its_last_step_writes_the_config_of_one_that_was_not(backbone_folder, rows, tmp_path):
    command = arguments(backbone_folder, rows, tmp_path / "out", "--max_steps", "2", "--save_steps", "2")
    assert main(command) == 0
    config = (tmp_path / "out" / "config.json").read_bytes()
    for name in ("config.json", "model.safetensors", "report.json"):
        (tmp_path / "out" / name).unlink()
    assert main(command) == 0
    assert (tmp_path / "out" / "config.json").read_bytes() == config


def test_a_restarted_run_that_died_before_it_was_measured_is_written_by_the_next_call(
    backbone_folder, rows, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    command = arguments(backbone_folder, rows, tmp_path, "--max_steps", "2", "--learning_rate")
    assert main([*command, "1e-3"]) == 0
    old = load_file(tmp_path / "model.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(ClassifierRun, "measure", killed)
        assert main([*command, "1e-2", "--restart"]) == 130
    assert main([*command, "1e-2"]) == 0
    new, last = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "checkpoint-2"))
    assert all(torch.equal(new[name], last[name]) for name in last)
    assert any(not torch.equal(new[name], old[name]) for name in old)


def test_a_run_goes_on_from_the_checkpoint_that_is_named(backbone_folder, rows, tmp_path, capsys):
    more = ["--max_steps", "4", "--save_steps", "2", "--eval_strategy", "no"]
    given = arguments(backbone_folder, rows, tmp_path / "out", *more)
    assert main(given) == 0
    whole = DualHeadReasoningModel.from_pretrained(tmp_path / "out").stored()
    (tmp_path / "out" / "report.json").unlink()
    named = str(tmp_path / "out" / "checkpoint-2")
    assert main([*given, "--checkpoint", named]) == 0
    assert f"Resuming from {named}" in "".join(capsys.readouterr().out.splitlines())
    again = DualHeadReasoningModel.from_pretrained(tmp_path / "out").stored()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert "'nowhere' is not a folder" in refused(capsys, [*given, "--checkpoint", "nowhere"])


@pytest.mark.slow
def test_two_processes_measure_and_log_what_one_does(backbone_folder, rows, tmp_path):
    steps = ["--max_steps", "2", "--logging_steps", "2", "--dropout", "0", "--lora_dropout", "0", "--held_out", "0.3"]
    sizes = ["--max_input_length", "12", "--max_rationale_length", "24", "--disable_tqdm", "true", "--use_cpu", "true"]

    def given(name: str, size: int) -> list[str]:
        places = ["--model_name_or_path", backbone_folder, "--dataset_name", rows, "--output_dir", tmp_path / name]
        more = [*sizes, *steps, "--eval_strategy", "no", "--per_device_train_batch_size", size]
        return ["classify", "train", *map(str, [*places, *more])]

    assert main(given("one", 8)) == 0
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    gloo = "--dynamo_backend no --main_process_port 0 -m dual_head"
    done = subprocess.run(
        [sys.executable, *launch.split(), *gloo.split(), *given("two", 4)],
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert two["held_out"]["rows"] == one["held_out"]["rows"]
    assert two["held_out"]["nll"]["mean"] == pytest.approx(one["held_out"]["nll"]["mean"], rel=1e-4)
    logs = [next(row for row in report["log"] if "cls_loss" in row) for report in (one, two)]
    assert logs[1]["cls_loss"] == pytest.approx(logs[0]["cls_loss"], rel=1e-4)
    assert logs[1]["lm_loss"] == pytest.approx(logs[0]["lm_loss"], rel=1e-4)


def test_the_best_weights_are_the_ones_reported_also_when_the_command_is_repeated(
    backbone_folder, rows, tmp_path, capsys
):
    # A rate that makes each step worse than the last: the best is the first.
    more = ["--max_steps", "3", "--learning_rate", "2", "--held_out", "0.3", "--lr_scheduler_type", "constant"]
    each = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    given = arguments(backbone_folder, rows, tmp_path, *more, *each, "--load_best_model_at_end", "true")
    assert main(given) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    losses = {row["step"]: row["eval_nll"] for row in report["log"] if "eval_nll" in row}
    assert report["best_step"] < report["steps"] == 3
    assert report["held_out"]["nll"]["mean"] == pytest.approx(losses[report["best_step"]])
    assert losses[report["best_step"]] != pytest.approx(losses[3])
    assert f"weights of step {report['best_step']}" in " ".join(capsys.readouterr().out.split())
    weights = DualHeadReasoningModel.from_pretrained(tmp_path).stored()
    for lost in ("report.json", "model.safetensors"):
        (tmp_path / lost).unlink()
    assert main(given) == 0
    again = json.loads((tmp_path / "report.json").read_text())
    assert (again["best_step"], again["held_out"]) == (report["best_step"], report["held_out"])
    assert all(
        torch.equal(x, weights[name]) for name, x in DualHeadReasoningModel.from_pretrained(tmp_path).stored().items()
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "reasoning head learns to write the inputs alone"),
        (["--control", "label_only"], "reasoning head learns to write the inputs alone"),
        (["--control", "input_lm"], None),
        (["--lm_weight", "0"], None),
    ],
)
def test_a_reasoning_head_without_rationales_is_said_aloud(backbone_folder, rows, tmp_path, capsys, more, said):
    bare = [{key: row[key] for key in ("input_text", "label")} for row in json.loads(rows.read_text())]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    given = ["--max_steps", "1", "--eval_strategy", "no", "--held_out", "0"]
    assert main(arguments(backbone_folder, tmp_path / "bare.json", tmp_path / "out", *given, *more)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (said in shown) if said else ("No training row has a rationale" not in shown)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--control", "label_only", "--lm_scope", "rationale"], "--control label_only: the reasoning head learns"),
        (["--max_rationale_length", "0", "--lm_scope", "continuation"], "raise --max_rationale_length"),
    ],
)
def test_a_reasoning_loss_without_a_token_to_learn_is_refused(backbone_folder, rows, tmp_path, capsys, more, said):
    given = arguments(backbone_folder, rows, tmp_path / "out", "--max_steps", "1", "--eval_strategy", "no", *more)
    shown = refused(capsys, given)
    assert said in shown
    assert "--lm_weight 0, the plain classifier" in shown
    assert not list((tmp_path / "out").iterdir())


def test_a_reasoning_loss_without_any_rationale_to_learn_is_refused(backbone_folder, tmp_path, capsys):
    bare = [{"input_text": word, "label": word[:-1]} for word in (*GOOD, *BAD)]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    given = arguments(backbone_folder, tmp_path / "bare.json", tmp_path / "out", "--held_out", "0")
    said = refused(capsys, [*given, "--max_steps", "1", "--lm_scope", "rationale"])
    assert "No training row has a rationale: the reasoning head learns nothing" in said


def test_the_shipped_config_trains_on_rationales():
    values = yaml.safe_load((SRC.parent / "configs" / "dhrd.yaml").read_text())
    assert values["data"] == {"dataset_name": "data/creak", "eval_split": "dev"}
    assert values["model"]["lm_weight"] == 1.0


def test_the_readmes_own_config_and_flags_work(backbone_folder, rows, tmp_path):
    config = {
        "model": {"name_or_path": str(backbone_folder), "num_labels": 2, "loss_weight_alpha": 0.25},
        "data": {"train_file": str(rows), "eval_file": str(rows), "batch_size": 4},
        "training": {"num_epochs": 1, "learning_rate": 5.0e-5},
    }
    file = tmp_path / "dhrd.yaml"
    file.write_text(yaml.safe_dump(config))
    sizes = ["--max_input_length", "12", "--max_rationale_length", "24", "--disable_tqdm", "true"]
    more = ["--batch_size", "20", "--num_epochs", "1", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    assert main(["classify", "train", "--config", str(file), *sizes, *more]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"] == 3  # 60 rows, 20 at a time: the flag is stronger than the file
    own = DualHeadReasoningModel.from_pretrained(tmp_path / "out").config
    assert (own.cls_weight, own.lm_weight) == (0.25, 0.75)


@pytest.mark.parametrize("control", ["pooled", "input_lm", "label_only", "shuffled_in_class"])
def test_controls_train(backbone_folder, rows, tmp_path, control):
    more = ["--max_steps", "1", "--control", control, "--eval_strategy", "no", "--held_out", "0"]
    assert main(arguments(backbone_folder, rows, tmp_path, *more)) == 0
    (row,) = (row for row in json.loads((tmp_path / "report.json").read_text())["log"] if "cls_loss" in row)
    assert ("lm_loss" in row) == (control != "pooled")


def test_mlflow_has_what_was_logged(backbone_folder, rows, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "dhrd")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    more = ["--max_steps", "2", "--logging_steps", "1", "--report_to", "mlflow", "--eval_strategy", "no"]
    assert main(arguments(backbone_folder, rows, tmp_path / "out", *more)) == 0
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("dhrd")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "cls_loss")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [metric.value for metric in history] == [row["cls_loss"] for row in report["log"] if "cls_loss" in row]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--heda", "linear"], "Did you mean '--head'"),
        (["--num_labels", "3"], "the data have 2"),
        (["--columns", "x"], "input=text,label=class"),
        (["--labels", "[no, yes]"], "--labels names the classes"),
        (["--loss_weight_alpha", "0.5", "--lm_weight", "0"], "Leave it out, or the two"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor has no effect"),
        (["--device", "banana"], "There is no device 'banana'"),
        (["--report_to", "tensorbord"], "Did you mean 'tensorboard'"),
        (["--report_to", "mlflow,banana"], "unknown tracker 'banana'. Known: "),
        (["--report_to", "mlflow", "none"], "'none' stands alone"),
        (["--class_weights", "1,x"], "numbers separated by commas"),
        (["--class_weights", "1,-1"], "at least 0 and not all 0"),
        (["--held_out", "0", "--load_best_model_at_end", "true", "--save_strategy", "epoch"], "Nothing is held out"),
        (["--max_rationale_length", "60"], "the backbone has 64 positions"),
        (["--explanation", "x"], "--explanation"),
        (["--reason_prefix", " "], "reason_prefix is what tells"),
    ],
)
def test_bad_options_name_the_remedy(backbone_folder, rows, tmp_path, capsys, more, said):
    assert said in refused(capsys, arguments(backbone_folder, rows, tmp_path, *more))


def configured(file: Path, **said) -> list[str]:
    file.write_text(yaml.safe_dump(said))
    return ["classify", "train", "--config", str(file)]


def test_columns_and_labels_of_a_config_are_what_they_are_in_yaml(backbone_folder, rows, tmp_path):
    long = {"yes": "yes, really", "no": "no"}
    other = tmp_path / "rows.json"
    found = [{"text": row["input_text"], "class": long[row["label"]]} for row in json.loads(rows.read_text())]
    other.write_text(json.dumps(found))
    given = configured(
        tmp_path / "dhrd.yaml",
        columns={"input": "text", "label": "class"},
        labels=["yes, really", "no"],
        class_weights=[1.0, 2.0],
    )
    more = ["--max_steps", "1", "--eval_strategy", "no"]
    for name, spelt in (("a", []), ("b", ["--columns", "input=text,label=class", "--labels", '["yes, really", "no"]'])):
        assert main(given + arguments(backbone_folder, other, tmp_path / name, *more, *spelt)[2:]) == 0
        config = DualHeadReasoningModel.from_pretrained(tmp_path / name).config
        assert config.id2label == {0: "yes, really", 1: "no"}
        assert config.text is not None
        assert config.text["columns"] == {"input": "text", "label": "class"}
        assert config.class_weights == [1, 2]


def test_the_papers_sentinels_and_its_name_of_a_scope_are_reached_from_flags_and_yaml(backbone_folder, rows, tmp_path):
    given = configured(tmp_path / "dhrd.yaml", reason_prefix="<REASON>", lm_scope="rationale + answer")
    more = ["--max_steps", "1", "--eval_strategy", "no", "--held_out", "0"]
    flags = ["--reason_prefix", "<REASON>", "--lm_scope", "rationale + answer"]
    for name, spelt in (("yaml", []), ("flags", flags)):
        start = ["classify", "train"] if spelt else given
        own = arguments(backbone_folder, rows, tmp_path / name, *more, *spelt, "--answer_prefix", "<ANS>")
        assert main(start + own[2:]) == 0
        config = DualHeadReasoningModel.from_pretrained(tmp_path / name).config
        assert config.lm_scope == "continuation"
        assert config.text is not None
        assert config.text["form"] == {"reason_prefix": "<REASON>", "answer_prefix": "<ANS>", "answer": "after"}


def test_labels_that_a_config_reads_as_truth_values_are_to_be_quoted(backbone_folder, rows, tmp_path, capsys):
    given = configured(tmp_path / "dhrd.yaml", labels=[False, True])
    assert "Quote them" in refused(capsys, given + arguments(backbone_folder, rows, tmp_path)[2:])


def test_a_device_is_one_that_is_there_and_that_training_takes(backbone_folder, rows, tmp_path, capsys, monkeypatch):
    def said(device: str) -> str:
        given = arguments(backbone_folder, rows, tmp_path / "out")
        by_config = refused(capsys, configured(tmp_path / "dhrd.yaml", device=device) + given[2:])
        assert refused(capsys, [*given, "--device", device]) == by_config
        return by_config

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert "torch sees cpu. Say one of them" in said("cuda")
    assert "torch sees cpu. Say one of them" in said("cuda:1")
    found = lambda check_available=False: torch.device("cuda")  # noqa: E731
    monkeypatch.setattr(torch.accelerator, "current_accelerator", found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert "torch sees cpu and cuda" in said("mps")
    assert "CUDA_VISIBLE_DEVICES=1" in said("cuda:1")
    assert "There is no device 'cuda:2' here" in said("cuda:2")
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_of_a_config_is_refused_with_the_nearest(tmp_path, capsys):
    file = tmp_path / "dhrd.yaml"
    file.write_text(yaml.safe_dump({"model": {"loss_weight_alfa": 0.5}}))
    assert "Did you mean 'loss_weight_alpha'" in refused(capsys, ["classify", "train", "--config", str(file)])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("modle: {name_or_path: gpt2}", "Unknown key 'modle' in '.*'. Did you mean 'model'"),
        ("devcie: cpu", "Unknown key 'devcie' in '.*'. Did you mean 'device'"),
        ("num_epohcs: 3", "Unknown key 'num_epohcs' in '.*'. Did you mean 'num_epochs'"),
        ("data: {3: x}", "Unknown key '3' in"),
        ("true: x", "must be a mapping of options to values"),
        ("model: gpt2", "'model' in '.*' groups options. Write them below it"),
        ("lr_scheduler_type: [cosine, linear]", "'lr_scheduler_type' in '.*' cannot be"),
        ("seed: 1\ntraining: {seed: 2}", "gives 'seed' twice, as seed and as training.seed. Leave one out"),
        (
            "training: {num_epochs: 1, num_train_epochs: 2}",
            "'num_train_epochs' twice, as training.num_epochs and",
        ),
        ("device: cpu\nuse_cpu: false", "gives 'use_cpu' twice, as device and as use_cpu"),
    ],
)
def test_a_config_that_says_what_nobody_can_do_is_refused(tmp_path, capsys, written, said):
    (tmp_path / "dhrd.yaml").write_text(written)
    assert re.search(said, refused(capsys, ["classify", "train", "--config", str(tmp_path / "dhrd.yaml")]))


def test_an_empty_section_says_nothing_and_a_list_is_one_where_a_flag_takes_commas(tmp_path):
    (tmp_path / "dhrd.yaml").write_text("model:\n  lora_targets: [q_proj, v_proj]\n  class_weights: [1, 2.5]\ndata:\n")
    given = ["--config", str(tmp_path / "dhrd.yaml"), "--model_name_or_path", "m", "--dataset_name", "d"]
    options, *_ = build_parser().read(given)
    assert options.model_options()["lora"]["targets"] == ["q_proj", "v_proj"]
    assert options.class_weights == "1,2.5"


def test_the_commands_are_listed_and_an_unknown_one_is_refused(capsys):
    assert main(["classify"]) == 0
    assert "rationales" in capsys.readouterr().out
    assert "Did you mean 'predict'" in refused(capsys, ["classify", "predcit"])
