"""Training: what is logged, saved and resumed, and that many processes give the gradients of one."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import tiny_lm
from safetensors.torch import load_file, save_file

from dual_head import AlignedModel, DualHeadError
from dual_head.cli import main
from dual_head.data.collate import PairCollator
from dual_head.methods import method
from dual_head.ops import compiled, vocab_kernels
from dual_head.train import run
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.base import rows_seen
from dual_head.train.identity import RECORDED_LATER, check_same_run
from dual_head.train.resume import last_whole_checkpoint, missing_files
from dual_head.train.step import GuidedLoss
from dual_head.train.trainer import GuideTrainer

SRC = Path(__file__).parents[2] / "src"


def arguments(backbone: Path, pairs: Path, output: Path, *, method: str = "dual_head", **options) -> list[str]:
    """`dual-head train` on the tiny backbone, with options on top; None leaves one out."""
    given = {
        "model_name_or_path": backbone,
        "dataset_name": pairs,
        "output_dir": output,
        "max_steps": 6,
        "learning_rate": 0.05,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "held_out": 0.2,
        **options,
    }
    said = {key: str(value) for key, value in given.items() if value is not None}
    return ["train", method, *(part for key, value in said.items() for part in (f"--{key}", value))]


def train(*args, **options) -> None:
    assert main(arguments(*args, **options)) == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_training_learns_logs_every_term_and_writes_guides_only(backbone_folder, pairs_file, tmp_path):
    train(backbone_folder, pairs_file, tmp_path, max_steps=30)
    report = json.loads((tmp_path / "report.json").read_text())
    logged = next(row for row in report["log"] if "loss" in row)
    assert {"next_token", "preference", "gate_entropy", "kl", "accuracy", "margin", "gate"} <= logged.keys()
    assert sum(logged[f"gate_hist_{i / 10:.1f}"] for i in range(10)) == pytest.approx(1)
    assert report["held_out"]["accuracy_over_base"]["mean"] == 1
    assert report["held_out"]["kl"]["mean"] > 0.1
    assert report["data"]["rows"]["rows"] == 60
    assert {name.split(".")[0] for name in weights(tmp_path)} == {"dual_head"}
    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert not list(tmp_path.glob("**/training_args.bin"))  # a pickle


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(backbone_folder, pairs_file, tmp_path):
    train(backbone_folder, pairs_file, tmp_path / "whole", save_steps=2)
    train(backbone_folder, pairs_file, tmp_path / "broken", save_steps=2, save_total_limit=3)
    for step in (4, 6):  # as if it had been killed after step 2, in the middle of saving step 4
        for file in (tmp_path / "broken" / f"checkpoint-{step}").iterdir():
            if step == 6 or file.name in ("trainer_state.json", "optimizer.pt"):
                file.unlink()
    (tmp_path / "broken" / "model.safetensors").unlink()
    train(backbone_folder, pairs_file, tmp_path / "broken", save_steps=2)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    states = [
        json.loads((tmp_path / run / "checkpoint-6/trainer_state.json").read_text()) for run in ("whole", "broken")
    ]
    logs = [[row["loss"] for row in state["log_history"] if "loss" in row] for state in states]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def three_steps(backbone_folder, pairs_file, tmp_path_factory) -> Path:
    """A run of a guide with dropout, which needs the random numbers too, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("three") / "steps"
    train(backbone_folder, pairs_file, folder, **THREE)
    return folder


THREE = {"method": "genarm", "guide.dropout": 0.5, "max_steps": 3, "save_steps": 1, "save_total_limit": 3}
NEEDED = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
BESIDE = {"checksums.json", "config.json", "modeling_dual_head.py", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("file", sorted(NEEDED | BESIDE))
def test_a_checkpoint_without_one_of_its_files_changes_no_result(
    file, three_steps, backbone_folder, pairs_file, tmp_path, capsys, caplog
):
    """It is passed over for the one before where the file is needed, and gone on from where it is not."""
    broken = tmp_path / "run"
    shutil.copytree(three_steps, broken)
    shutil.rmtree(broken / "checkpoint-3")
    assert {path.name for path in (broken / "checkpoint-2").iterdir()} == NEEDED | BESIDE
    (broken / "checkpoint-2" / file).unlink()
    train(backbone_folder, pairs_file, broken, **THREE)
    said = " ".join(capsys.readouterr().out.split())
    assert f"checkpoint-{1 if file in NEEDED else 2}." in said
    assert_same(weights(three_steps), weights(broken))
    if file in NEEDED:
        assert f"passed over: no {file}" in caplog.text
        (broken / "checkpoint-2" / file).unlink()
        asked = arguments(backbone_folder, pairs_file, broken, resume_from_checkpoint=broken / "checkpoint-2", **THREE)
        assert main(asked) == 2
        assert f"it has no {file}" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(NEEDED))
def test_a_checkpoint_with_a_damaged_file_is_passed_over_for_the_one_before(
    file, three_steps, backbone_folder, pairs_file, tmp_path, capsys, caplog
):
    broken = tmp_path / "run"
    shutil.copytree(three_steps, broken)
    shutil.rmtree(broken / "checkpoint-3")
    damaged = broken / "checkpoint-2" / file
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    train(backbone_folder, pairs_file, broken, **THREE)
    assert f"passed over: no whole {file}" in caplog.text
    assert "checkpoint-1." in " ".join(capsys.readouterr().out.split())
    assert_same(weights(three_steps), weights(broken))


def test_what_a_killed_run_was_writing_in_a_checkpoint_is_removed(three_steps, backbone_folder, pairs_file, tmp_path):
    shutil.copytree(three_steps, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    (checkpoint / ".writing-3f9a").mkdir()
    (checkpoint / ".writing-3f9a.lock").touch()
    train(backbone_folder, pairs_file, tmp_path / "run", **THREE)
    assert {path.name for path in checkpoint.iterdir()} == NEEDED | BESIDE


def test_a_checkpoint_that_is_named_is_of_the_options_of_its_run(
    three_steps, backbone_folder, pairs_file, tmp_path, capsys
):
    named = {**THREE, "resume_from_checkpoint": three_steps / "checkpoint-1"}
    assert main(arguments(backbone_folder, pairs_file, tmp_path / "again", **named, learning_rate=1)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"'{three_steps}' holds checkpoints of a run with other options (learning_rate: '0.05' there" in error
    assert "Put the options back, or leave out --resume_from_checkpoint." in error
    train(backbone_folder, pairs_file, tmp_path / "again", **named)
    assert_same(weights(three_steps), weights(tmp_path / "again"))


def test_a_run_does_not_go_on_from_elsewhere_in_the_folder_of_another(
    three_steps, backbone_folder, pairs_file, tmp_path, capsys
):
    train(backbone_folder, pairs_file, tmp_path, method="iav", max_steps=1)
    before = weights(tmp_path)
    named = {**THREE, "resume_from_checkpoint": three_steps / "checkpoint-3"}
    assert main(arguments(backbone_folder, pairs_file, tmp_path, **named)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"'{tmp_path}' holds checkpoints of a run with other options" in error
    assert_same(weights(tmp_path), before)


def test_a_run_does_not_begin_anew_and_go_on_at_once(three_steps, backbone_folder, pairs_file, tmp_path, capsys):
    shutil.copytree(three_steps, tmp_path / "run")
    files = sorted(str(path) for path in tmp_path.rglob("*"))
    named = {**THREE, "resume_from_checkpoint": tmp_path / "run" / "checkpoint-1"}
    assert main([*arguments(backbone_folder, pairs_file, tmp_path / "run", **named), "--restart"]) == 2
    assert "Leave one of them out" in " ".join(capsys.readouterr().err.split())
    assert sorted(str(path) for path in tmp_path.rglob("*") if not path.name.endswith(".lock")) == files


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train_sampling_strategy", "random"),
        ("dataloader_drop_last", True),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}'),
        ("adam_epsilon", 1e-6),
        ("optim_args", "a=1"),
    ],
)
def test_what_changes_the_rest_of_a_run_stays_as_it_was(
    option, value, three_steps, backbone_folder, pairs_file, capsys
):
    assert main(arguments(backbone_folder, pairs_file, three_steps, **THREE, **{option: value})) == 2
    assert f"a run with other options ({option}: " in " ".join(capsys.readouterr().err.split())


def test_a_run_whose_record_lacks_an_option_goes_on(three_steps, backbone_folder, pairs_file, tmp_path, capsys):
    shutil.copytree(three_steps, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    older = {name: value for name, value in record.items() if name not in RECORDED_LATER}
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))
    train(backbone_folder, pairs_file, tmp_path / "run", **THREE)
    assert "Resuming from" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == record  # from here on it has them


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(backbone_folder, pairs_file, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dual_head",
        *arguments(backbone_folder, pairs_file, tmp_path / "killed", max_steps=40, save_steps=1),
    ]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not list((tmp_path / "killed").glob("checkpoint-[3-9]")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # saving takes most of each step's time, so this hits it about as often
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert last_whole_checkpoint(tmp_path / "killed") is not None
    train(backbone_folder, pairs_file, tmp_path / "killed", max_steps=40, save_steps=1)
    train(backbone_folder, pairs_file, tmp_path / "whole", max_steps=40, save_steps=100)
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_run_with_other_options_is_not_resumed(backbone_folder, pairs_file, tmp_path, capsys):
    train(backbone_folder, pairs_file, tmp_path, save_steps=2)
    assert main(arguments(backbone_folder, pairs_file, tmp_path, save_steps=2, beta_r=0.5)) == 2
    assert "preference" in capsys.readouterr().err
    assert main([*arguments(backbone_folder, pairs_file, tmp_path, save_steps=2, beta_r=0.5), "--restart"]) == 0


def test_a_run_names_what_differs():
    with pytest.raises(DualHeadError, match=r"learning_rate: 1 there, 2 now.*--restart"):
        check_same_run({"learning_rate": 1, "seed": 3}, {"learning_rate": 2, "seed": 3}, "out")


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_give_the_gradients_of_one(cached, backbone_folder, pairs_file, tmp_path):
    one: dict = {"per_device_train_batch_size": 8, "max_steps": 3, "optim": "sgd", "learning_rate": 1.0}
    if cached:
        places = ("--model_name_or_path", str(backbone_folder), "--dataset_name", str(pairs_file))
        assert main(["cache", *places, "--output_dir", str(tmp_path / "cache"), "--held_out", "0.2"]) == 0
        recorded = ("model_name_or_path", "dataset_name", "held_out")
        one |= dict.fromkeys(recorded) | {"feature_cache": tmp_path / "cache"}
    train(backbone_folder, pairs_file, tmp_path / "one", **one)
    command = [
        # "--multi_gpu" is accelerate's name for its torchrun launcher; without a GPU the processes talk by gloo.
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
        ),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "dual_head"),
        *arguments(backbone_folder, pairs_file, tmp_path / "two", **{**one, "per_device_train_batch_size": 4}),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one_weights, two_weights = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one_weights.items():
        torch.testing.assert_close(two_weights[name], value, atol=2e-5, rtol=1e-4)
    reports = [json.loads((tmp_path / run / "report.json").read_text()) for run in ("one", "two")]
    assert reports[0]["held_out"]["kl"]["pairs"] == reports[1]["held_out"]["kl"]["pairs"]
    losses = [[row["eval_loss"] for row in report["log"] if "eval_loss" in row][-1] for report in reports]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # with batches that are not filled alike


@pytest.mark.parametrize(("length", "processes", "rows"), [({"max_steps": 5}, 1, 60), ({"num_train_epochs": 3}, 2, 60)])
def test_the_rows_that_a_process_sees_are_counted(length, processes, rows, tmp_path, monkeypatch):
    args = GuideTrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=3, eval_strategy="no", **length
    )
    monkeypatch.setattr(GuideTrainingArguments, "world_size", processes)
    assert rows_seen(args, 40) == rows


def test_loops_are_compiled_where_a_run_is_long_enough_and_it_says_where(
    backbone_folder, pairs_file, tmp_path, capsys, monkeypatch
):
    plain = (vocab_kernels._values, vocab_kernels._gradients, vocab_kernels._gradients_in_place)
    monkeypatch.setattr(vocab_kernels, "_compiled", lambda: plain)  # as what the compiler makes of them, less the wait
    monkeypatch.setattr(compiled, "LARGE_VOCABULARY", 10)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    tokens = sum(len(row[side].split()) + 1 for row in rows for side in ("chosen", "rejected")) / len(rows)
    vocab = json.loads((backbone_folder / "config.json").read_text())["vocab_size"]
    options = {"max_steps": 2, "held_out": 0, "logging_steps": 1}
    folders, said = [tmp_path / "plain", tmp_path / "compiled"], []
    for folder, pays in zip(folders, (8.1, 7.9), strict=True):  # two steps of four pairs
        monkeypatch.setattr(compiled, "PAYS", pays * tokens * vocab)
        train(backbone_folder, pairs_file, folder, **options)
        said.append(" ".join(capsys.readouterr().out.split()))
    assert "compiles" not in said[0]
    assert (
        f"The first step compiles loops once (about 30 s). Later runs find them in {compiled.compiled_folder()}"
        in said[1]
    )
    for name, value in weights(folders[0]).items():
        torch.testing.assert_close(weights(folders[1])[name], value)


def test_a_head_that_is_large_says_what_one_of_low_rank_would_be(
    backbone_folder, pairs_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(run, "LOW_RANK", 4)
    monkeypatch.setattr(run, "LARGE", 0.05)
    vocab = json.loads((backbone_folder / "config.json").read_text())["vocab_size"]
    for options, said in (({}, f"--rank 4 would train {4 * (32 + vocab):,} "), ({"rank": 4}, None)):
        train(backbone_folder, pairs_file, tmp_path, method="iav", max_steps=1, restart=True, **options)
        printed = " ".join(capsys.readouterr().out.split())
        assert said is None or said in printed
        assert ("would train" in printed) is bool(said)


def test_by_default_the_last_two_checkpoints_are_kept(backbone_folder, pairs_file, tmp_path):
    train(backbone_folder, pairs_file, tmp_path, max_steps=4, save_steps=1)
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_bf16_and_activation_checkpointing_flags_are_accepted(backbone_folder, pairs_file, tmp_path):
    train(backbone_folder, pairs_file, tmp_path, bf16=True, activation_checkpointing=True, max_steps=2)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_metrics_reach_tensorboard(backbone_folder, pairs_file, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "runs")
    try:
        train(backbone_folder, pairs_file, tmp_path, report_to="tensorboard", max_steps=2)
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert {"train/preference", "train/gate", "eval/accuracy"} <= set(events.Tags()["scalars"])


def test_the_report_is_of_the_weights_that_are_kept(backbone_folder, pairs_file, tmp_path):
    """At this rate every evaluation is worse than the first one, whose weights are the best."""
    options = {"learning_rate": 3.0, "eval_steps": 2, "save_steps": 2, "max_steps": 6, "load_best_model_at_end": True}
    out = tmp_path / "out"
    train(backbone_folder, pairs_file, out, **options, save_strategy="steps", eval_strategy="steps")
    state = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in state["log_history"] if "eval_loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert best != 6
    assert_same(weights(out), weights(out / f"checkpoint-{best}"))
    reported = json.loads((out / "report.json").read_text())["metrics"]["eval_loss"]
    assert reported == pytest.approx(losses[best])
    for file in ("report.json", "model.safetensors"):
        (out / file).unlink()
    train(backbone_folder, pairs_file, out, **options, save_strategy="steps", eval_strategy="steps")
    assert_same(weights(out), weights(out / f"checkpoint-{best}"))  # written again without training


def write_checkpoint(folder: Path) -> Path:
    """Write a checkpoint without a seal, as there were none once."""
    folder.mkdir()
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"x": torch.ones(2)}, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 2, "max_steps": 9}')
    return folder


def test_only_the_newest_whole_checkpoint_counts(tmp_path):
    for step in (2, 10, 12):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"cut')
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert (tmp_path / "checkpoint-12").exists()  # passed over, and not ours to delete
    assert last_whole_checkpoint(tmp_path / "nothing") is None
    assert last_whole_checkpoint(tmp_path, processes=2) is None  # each has random numbers of its own


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("trainer_state.json", b"[]"),
        ("trainer_state.json", b'{"global_step": "2"}'),
        ("trainer_state.json", b'{"other": 1}'),
        ("model.safetensors", b""),
        ("optimizer.pt", b"PK"),
        ("scheduler.pt", b""),
        ("rng_state.pth", pickle.dumps(print)),
        ("scaler.pt", b"?"),
    ],
)
def test_a_checkpoint_without_a_seal_is_passed_over_where_one_of_its_files_cannot_be_read(name, damage, tmp_path):
    whole, damaged = (write_checkpoint(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    (damaged / name).write_bytes(damage)
    assert missing_files(damaged, 1) == [f"whole {name}"]
    assert last_whole_checkpoint(tmp_path) == whole


def test_weight_0_measures_without_a_gradient():
    lm = tiny_lm("llama")
    chosen = method("dual_head").with_options({"next_token.weight": 0.0, "lambda_r": 0.0, "lambda_g": 0.0})
    model = AlignedModel.from_backbone(lm, {"dual_head": chosen.guide})
    out = GuidedLoss(model, chosen, guide="dual_head")(
        **PairCollator(0)([{"prompt_ids": [5], "chosen_ids": [6, 2], "rejected_ids": [7, 2]}])
    )
    assert out["loss"].item() == 0
    assert {"next_token", "preference", "gate_entropy", "kl"} <= out.keys()


def test_a_guide_of_another_shape_than_the_methods_is_not_trained(tmp_path):
    chosen = method("dual_head").with_options({"gate": "constant"})
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"dual_head": method("dual_head").guide})
    arguments = GuideTrainingArguments(str(tmp_path), eval_strategy="no")
    with pytest.raises(DualHeadError, match="Build the model from the method"):
        GuideTrainer(model, chosen, arguments, train_dataset=[], data_collator=PairCollator(0))
    with pytest.raises(DualHeadError, match=r"no guide 'dual_heat'.*Did you mean"):
        GuideTrainer(model, chosen, arguments, train_dataset=[], data_collator=PairCollator(0), guide="dual_heat")


def test_repeating_a_finished_command_trains_nothing_more(backbone_folder, pairs_file, tmp_path, capsys):
    train(backbone_folder, pairs_file, tmp_path, save_steps=100)
    before, report = weights(tmp_path), json.loads((tmp_path / "report.json").read_text())
    train(backbone_folder, pairs_file, tmp_path, save_steps=100)
    assert "Already trained to the end" in capsys.readouterr().out
    assert_same(before, weights(tmp_path))
    assert report["steps"] == 6
    assert json.loads((tmp_path / "report.json").read_text()) == report  # its seconds and curves, too


def test_a_restarted_run_that_died_before_it_was_measured_is_written_by_the_next_call(
    backbone_folder, pairs_file, tmp_path, monkeypatch
):
    """The old guide stays until then, and does not pass for the new one."""

    def killed(*_):
        raise KeyboardInterrupt

    train(backbone_folder, pairs_file, tmp_path, max_steps=2)
    old, options = weights(tmp_path), {"max_steps": 2, "learning_rate": 0.5}
    with monkeypatch.context() as patched:
        patched.setattr(run.GuideRun, "measure", killed)
        assert main([*arguments(backbone_folder, pairs_file, tmp_path, **options), "--restart"]) == 130
    assert_same(weights(tmp_path), old)
    train(backbone_folder, pairs_file, tmp_path, **options)
    new = weights(tmp_path)
    assert_same(new, weights(tmp_path / "checkpoint-2"))
    assert any(not torch.equal(new[name], old[name]) for name in old)
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 2


def test_a_mistyped_command_deletes_nothing_not_even_with_restart(backbone_folder, pairs_file, tmp_path, capsys):
    train(backbone_folder, pairs_file, tmp_path, save_steps=2)
    foreign = tmp_path / "checkpoint-100"
    foreign.mkdir()
    (foreign / "pytorch_model.bin").write_text("another project's")
    there = sorted(str(path) for path in tmp_path.rglob("*"))
    mistyped = arguments(tmp_path / "nothing", pairs_file, tmp_path, save_steps=2)
    assert main([*mistyped, "--restart"]) == 2
    assert main(mistyped) == 2
    assert sorted(str(path) for path in tmp_path.rglob("*")) == there


def test_a_run_shorter_than_its_logging_steps_still_logs_its_terms(backbone_folder, pairs_file, tmp_path):
    train(backbone_folder, pairs_file, tmp_path, max_steps=2, logging_steps=50)
    log = json.loads((tmp_path / "report.json").read_text())["log"]
    assert any("preference" in row for row in log)


def test_held_out_pairs_that_are_all_too_long_do_not_stop_the_run(backbone_folder, tmp_path, capsys):
    from dual_head.data import Pair, split_by_prompt

    short = [{"prompt": f"ask{i}", "chosen": " good0", "rejected": " bad0"} for i in range(20)]
    aside = split_by_prompt([Pair(**row) for row in short], 0.2)[1]
    assert aside
    for row in short:
        if row["prompt"] in {pair.prompt for pair in aside}:
            row["chosen"] = " good0" * 80  # longer than the context of 64
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in short))
    train(backbone_folder, file, tmp_path / "out", max_steps=1)
    assert "nothing is held out" in capsys.readouterr().out


def test_a_guide_that_diverged_is_not_saved(backbone_folder, pairs_file, tmp_path, capsys):
    assert main(arguments(backbone_folder, pairs_file, tmp_path, learning_rate=1e38, max_steps=4, save_steps=1)) == 2
    assert "Training diverged" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def test_eval_steps_alone_asks_for_evaluation_by_steps(tmp_path):
    assert GuideTrainingArguments(str(tmp_path), eval_steps=5).eval_strategy == "steps"
    assert GuideTrainingArguments(str(tmp_path), eval_steps=5, eval_strategy="no").eval_strategy == "no"


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("weight_decay", -1.0, "at least 0"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("max_steps", -5, "at least -1"),
        ("label_smoothing_factor", 1.5, "below 1"),
        ("data_seed", 2**32, "below 4,294,967,296"),
        ("dataloader_num_workers", 10**6, "below 1,025"),
        ("save_total_limit", -1, "at least 0"),
        ("eval_delay", float("nan"), "a finite number"),
    ],
)
def test_numbers_that_transformers_would_ignore_or_fail_on_late_are_refused(tmp_path, option, value, bound):
    with pytest.raises(DualHeadError, match=f"--{option} must be {bound}"):
        GuideTrainingArguments(str(tmp_path), **{option: value})


@pytest.mark.parametrize("option", [{"label_smoothing_factor": 0.1}, {"remove_unused_columns": True}])
def test_options_that_would_change_nothing_or_remove_the_data_are_refused(tmp_path, option):
    with pytest.raises(DualHeadError, match=f"--{next(iter(option))} .*Leave it out"):
        GuideTrainingArguments(str(tmp_path), **option)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("preference", False), ("eval_kl", False), ("loss", False), ("accuracy", True), ("gate_entropy", True)],
)
def test_the_best_checkpoint_by_a_loss_is_the_one_where_it_is_lowest(tmp_path, metric, greater):
    assert GuideTrainingArguments(str(tmp_path), metric_for_best_model=metric).greater_is_better == greater
    opposite = GuideTrainingArguments(str(tmp_path), metric_for_best_model=metric, greater_is_better=not greater)
    assert opposite.greater_is_better is not greater


def test_a_first_step_that_is_logged_has_every_term(backbone_folder, pairs_file, tmp_path):
    train(backbone_folder, pairs_file, tmp_path, max_steps=2, logging_steps=2, logging_first_step=True)
    first, second = json.loads((tmp_path / "report.json").read_text())["log"][:2]
    assert (first["step"], second["step"]) == (1, 2)
    assert first.keys() == second.keys()
    assert "kl" in first


@pytest.mark.parametrize("steps", [2, -1])
def test_rows_that_do_not_fill_a_batch_are_not_all_left_out(steps, backbone_folder, pairs_file, tmp_path, capsys):
    options = {"max_steps": steps, "per_device_train_batch_size": 64, "dataloader_drop_last": True}
    assert main(arguments(backbone_folder, pairs_file, tmp_path, **options)) == 2
    assert "--dataloader_drop_last leaves out all rows: they are fewer than the 64" in capsys.readouterr().err
