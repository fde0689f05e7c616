"""`dual-head classify compare`: every control at every seed, trained once, and the table that sets them apart."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from files import ASKED, BAD, GOOD
from rich.console import Console

from dual_head.classify.train import compare as comparison
from dual_head.classify.train.inputs import load_sets
from dual_head.classify.train.options import ClassifyOptions
from dual_head.classify.train.trainer import ClassifierTrainer
from dual_head.cli import main
from dual_head.stats import crossed

COLUMNS = "| system | accuracy % (95%) | by seed | over pooled (95%) | over none (95%) | macro-F1 % (95%) |"


def write_rows(file: Path, *, count: int = 60, **more) -> Path:
    """Inputs with a good or a bad word, which is their label, and a rationale that says the word."""
    rng = random.Random(0)
    found = []
    for i in range(count):
        word = rng.choice(GOOD if i % 2 else BAD)
        row = {"input_text": f"{rng.choice(ASKED)} {rng.choice(ASKED)} {word}", "label": ("no", "yes")[i % 2]}
        found.append(row | {"rationale": f"i can {word}"} | {key: value(i) for key, value in more.items()})
    file.write_text(json.dumps(found))
    return file


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.json")


def arguments(backbone: Path, rows: Path, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", str(backbone), "--dataset_name", str(rows), "--output_dir", str(output)]
    sizes = ["--max_input_length", "12", "--max_rationale_length", "24", "--per_device_train_batch_size", "8"]
    steps = ["--max_steps", "2", "--held_out", "0.3", "--eval_strategy", "no", "--learning_rate", "1e-2"]
    said = ["--disable_tqdm", "true", "--resamples", "200", *more]
    return ["classify", "compare", *given, *sizes, *steps, *said]


TWO = ("--controls", "none", "pooled", "--seeds", "0", "1")


@pytest.fixture(scope="module")
def done(backbone_folder, rows, tmp_path_factory) -> Path:
    """Two controls at two seeds, trained and compared; not to be written to."""
    output = tmp_path_factory.mktemp("compared")
    assert main(arguments(backbone_folder, rows, output, *TWO)) == 0
    return output


def figures(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_text())


def refused(capsys, given: list[str]) -> str:
    capsys.readouterr()
    assert main(given) == 2
    return " ".join(capsys.readouterr().err.split())


def trained(monkeypatch) -> list[tuple[str, int]]:
    """What is trained from now on, as (control, seed)."""
    found, train = [], comparison.train_classifier

    def noted(options, args):
        found.append((options.control, args.seed))
        return train(options, args)

    monkeypatch.setattr(comparison, "train_classifier", noted)
    return found


def right(folder: Path, control: str, truth: list) -> np.ndarray:
    """Whether each held-out row was classified rightly, [seeds, rows], by the logits that the runs left."""
    places = [folder / "runs" / f"{control}-seed{seed}" / "held_out.json" for seed in (0, 1)]
    logits = np.array([json.loads(place.read_text())["logits"] for place in places])
    return (logits.argmax(-1) == np.array(truth)).astype(float)


# ---- figures -------------------------------------------------------------------------------------------------


def test_every_control_has_a_row_and_the_figures_of_its_runs_own_reports(done):
    found = figures(done)
    assert (list(found["systems"]), found["seeds"], found["steps"]) == (["none", "pooled"], [0, 1], 2)
    for control, own in found["systems"].items():
        reports = [json.loads((Path(run) / "report.json").read_text()) for run in found["runs"][control]]
        for metric in ("accuracy", "macro_f1", "nll"):
            said = [report["held_out"][metric]["mean"] for report in reports]
            assert own[metric]["by_seed"] == pytest.approx(said)
            assert own[metric]["mean"] == pytest.approx(sum(said) / 2)
        assert [report["control"] for report in reports] == [control] * 2
        assert found["rows"] == reports[0]["held_out"]["rows"]
    page = (done / "compare.md").read_text()
    assert COLUMNS in page
    assert "| none |" in page
    assert "| always " in page
    assert "seeds 0, 1; 95% intervals resample seeds and rows" in page


def test_intervals_resample_seeds_and_rows_and_differences_are_row_by_row(backbone_folder, rows, done):
    options = ClassifyOptions(model_name_or_path=str(backbone_folder), dataset_name=str(rows), held_out=0.3)
    truth = [row.label for row in load_sets(options, Console(quiet=True))[1]]
    none, pooled = right(done, "none", truth), right(done, "pooled", truth)
    own = figures(done)["systems"]["none"]["accuracy"]
    mean, interval = crossed(none, resamples=200)
    assert (own["mean"], own["interval"]) == (pytest.approx(mean), pytest.approx(interval))
    difference, interval = crossed(none - pooled, resamples=200)
    assert own["over"] == {
        "pooled": {"difference": pytest.approx(difference), "interval": pytest.approx(interval)},
    }
    other = figures(done)["systems"]["pooled"]["accuracy"]["over"]["none"]
    assert other["difference"] == pytest.approx(-difference)


def test_a_folder_of_a_run_is_a_classifier_as_train_writes_it(done):
    from dual_head.classify.predict import Predictor

    predictor = Predictor.load(done / "runs" / "none-seed1", device="cpu")
    assert predictor.labels == ("no", "yes")


def test_groups_have_f1a_and_exact_match_and_are_resampled_whole(backbone_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.json", group=lambda i: f"q{i // 4}")
    assert main(arguments(backbone_folder, rows, tmp_path / "out", "--controls", "none", "--seeds", "0")) == 0
    found = figures(tmp_path / "out")
    assert found["groups"] == found["rows"] // 4
    assert set(found["systems"]["none"]) == {"accuracy", "macro_f1", "nll", "f1a", "em"}
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "| macro-F1 % (95%) | F1a % (95%) | EM % (95%) |" in page
    assert "over" not in page  # of a single system there is nothing to tell
    assert "resample rows only" in page


def test_rows_of_several_labels_have_no_accuracy(backbone_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.json", label=lambda i: [["no"], ["yes"], ["no", "yes"]][i % 3])
    more = ["--problem_type", "multi_label_classification", "--controls", "none", "pooled", "--seeds", "0"]
    assert main(arguments(backbone_folder, rows, tmp_path / "out", *more)) == 0
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "| system | exact match % (95%) | by seed |" in page
    assert "accuracy" not in page
    assert "always" not in page


# ---- what is trained, and what is not ------------------------------------------------------------------------


def test_a_repeated_command_trains_nothing_and_says_the_same(backbone_folder, rows, done, monkeypatch, capsys):
    before, page = figures(done), (done / "compare.md").read_text()

    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(comparison, "train_classifier", train)
    assert main(arguments(backbone_folder, rows, done, *TWO)) == 0
    assert capsys.readouterr().out.count("Already trained to the end") == 4
    assert figures(done)["systems"] == before["systems"]
    assert (done / "compare.md").read_text() == page


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_inside_the_run_that_was_stopped(
    backbone_folder, rows, done, tmp_path, monkeypatch, capsys
):
    given = arguments(backbone_folder, rows, tmp_path, *TWO, "--save_strategy", "steps", "--save_steps", "1")
    step, steps = ClassifierTrainer.training_step, []

    def killed(self, *inputs, **named):
        steps.append(self.state.global_step)
        if len(steps) == 4:  # the second step of the second run
            raise KeyboardInterrupt
        return step(self, *inputs, **named)

    monkeypatch.setattr(ClassifierTrainer, "training_step", killed)
    assert main(given) == 130
    assert not (tmp_path / "compare.json").exists()
    monkeypatch.undo()
    found = trained(monkeypatch)
    assert main(given) == 0
    assert found == [("pooled", 0), ("none", 1), ("pooled", 1)]
    said = "".join(capsys.readouterr().out.split())
    assert said.count("Resumingfrom") == 1
    assert f"Resumingfrom{tmp_path}/runs/pooled-seed0/checkpoint-1." in said
    assert figures(tmp_path)["systems"] == figures(done)["systems"]


def test_seeds_and_controls_that_come_later_are_all_that_is_trained(backbone_folder, rows, tmp_path, monkeypatch):
    found = trained(monkeypatch)
    assert main(arguments(backbone_folder, rows, tmp_path, "--controls", "none", "--seeds", "0")) == 0
    assert main(arguments(backbone_folder, rows, tmp_path, "--controls", "none", "permuted", "--seeds", "0", "1")) == 0
    assert found == [("none", 0), ("permuted", 0), ("none", 1), ("permuted", 1)]


def test_another_plan_in_the_same_folder_is_refused_by_what_differs(backbone_folder, rows, done, capsys):
    # Of a run that is not there yet, which could not tell.
    more = ["--controls", "permuted", "--seeds", "0", "--weight_decay", "0.5"]
    said = refused(capsys, arguments(backbone_folder, rows, done, *more))
    assert "weight_decay: '0.01' there, '0.5' now" in said
    assert not (done / "runs" / "permuted-seed0").exists()
    assert "--restart" in said


def test_rows_that_changed_since_are_another_plan_and_restart_trains_on_them(
    backbone_folder, tmp_path, monkeypatch, capsys
):
    rows, found = write_rows(tmp_path / "rows.json"), trained(monkeypatch)
    given = arguments(backbone_folder, rows, tmp_path / "out", "--controls", "none", "--seeds", "0")
    assert main(given) == 0
    write_rows(rows, count=72)
    said = refused(capsys, given)
    assert "held_out_rows" in said
    assert "training_rows" in said
    assert main([*given, "--restart", "true"]) == 0
    assert main([*given, "--restart", "true"]) == 0  # also where nothing changed
    assert found == [("none", 0)] * 3


def test_what_was_judged_under_another_plan_is_judged_again(backbone_folder, rows, tmp_path, monkeypatch):
    found = trained(monkeypatch)
    given = arguments(backbone_folder, rows, tmp_path, "--seeds", "0", "--controls")
    assert main([*given, "none", "pooled"]) == 0
    assert main([*given, "none", "--restart", "true", "--weight_decay", "0.5"]) == 0
    # The folder is the new plan's now, and holds a run of the old one.
    assert main([*given, "none", "pooled", "--weight_decay", "0.5"]) == 2
    assert found == [("none", 0), ("pooled", 0), ("none", 0), ("pooled", 0)]


# ---- what is asked for ---------------------------------------------------------------------------------------


def test_a_config_may_say_controls_and_seeds(backbone_folder, rows, tmp_path):
    config = tmp_path / "dhrd.yaml"
    config.write_text(yaml.safe_dump({"model": {"lm_weight": 0.5}, "controls": ["none", "pooled"], "seeds": [3]}))
    assert main(arguments(backbone_folder, rows, tmp_path / "out", "--config", str(config))) == 0
    found = figures(tmp_path / "out")
    assert (list(found["runs"]), found["seeds"], found["plan"]["lm_weight"]) == (["none", "pooled"], [3], 0.5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "1"], "Say --seeds"),
        (["--control=pooled"], "Say --controls"),
        (["--resume_from_checkpoint", "x"], "goes on by itself"),
        (["--checkpoint", "x"], "goes on by itself"),
        (["--controls", "shufled"], "Did you mean 'shuffled'"),
        (["--held_out", "0"], "Nothing is held out"),
        (["--contorls", "none"], "Did you mean '--controls'"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(backbone_folder, rows, tmp_path, capsys, more, said):
    assert said in refused(capsys, arguments(backbone_folder, rows, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_seeds_of_a_config_are_a_list(backbone_folder, rows, tmp_path, capsys):
    wrongs = {
        "--seeds must be at least 0, not -1": [-1],
        "'seeds' in": ["a"],
        "are lists, such as [none, pooled] and [0, 1, 2]": [],
    }
    for remedy, wrong in wrongs.items():
        (tmp_path / "dhrd.yaml").write_text(yaml.safe_dump({"seeds": wrong}))
        given = arguments(backbone_folder, rows, tmp_path / "out", "--config", str(tmp_path / "dhrd.yaml"))
        assert remedy in refused(capsys, given)


def test_a_control_with_nothing_to_spoil_is_refused_before_the_first_run(backbone_folder, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.json", rationale=lambda i: "")
    said = refused(capsys, arguments(backbone_folder, rows, tmp_path / "out", "--controls", "none", "permuted"))
    assert "'permuted' spoils rationales" in said
    assert not (tmp_path / "out").exists()


def test_a_record_that_is_none_is_refused_with_the_remedy(backbone_folder, rows, tmp_path, capsys):
    place = tmp_path / "runs" / "none-seed0"
    place.mkdir(parents=True)
    (place / "held_out.json").write_text("{")
    said = refused(capsys, arguments(backbone_folder, rows, tmp_path, "--controls", "none", "--seeds", "0"))
    assert "held_out.json': it is not whole JSON. Delete it" in said


def test_the_command_is_listed(capsys):
    assert main(["classify"]) == 0
    assert "compare" in capsys.readouterr().out
