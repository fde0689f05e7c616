"""`dual-head train METHOD` for every method that has steps: what it writes, that it generates, and that it resumes."""

import json
import pickletools
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from files import word_tokenizer, write_backbone
from models import HIDDEN
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dual_head import AlignedModel
from dual_head.cli import main
from dual_head.data import is_held_out
from dual_head.evaluate.rewards import Classifier
from dual_head.methods import method, method_names
from dual_head.stats import wilson
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.run import RunOptions, train_guide

PEERS = [name for name in method_names() if method(name).peer is not None]
every_method = pytest.mark.parametrize("name", [name for name in method_names() if method(name).fit is None])
every_peer = pytest.mark.parametrize("name", PEERS)
STEPS = 3


def arguments(name: str, backbone: Path, pairs: Path, output: Path, **options) -> list[str]:
    given = {
        "model_name_or_path": backbone,
        "dataset_name": pairs,
        "output_dir": output,
        "max_steps": STEPS,
        "learning_rate": 0.01,
        "warmup_steps": 0,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "held_out": 0.2,
        **options,
    }
    return ["train", name, *(part for key, value in given.items() for part in (f"--{key}", str(value)))]


def train(name: str, *places: Path, **options) -> None:
    assert main(arguments(name, *places, **options)) == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(backbone_folder, pairs_file, tmp_path_factory):
    """One finished run of each method asked for, made once."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(name: str) -> Path:
        if name not in made:
            train(name, backbone_folder, pairs_file, root / name, save_steps=2)
            made[name] = root / name
        return made[name]

    return run


# ---- a step that is split -----------------------------------------------------------------------------------

# All dropout off, and the step of SGD as large as the gradient: AdamW would hide any factor.
PLAIN = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0, "weight_decay": 0, "held_out": 0}
PLAIN |= {"max_steps": 1, "learning_rate": 1, "save_strategy": "no"}


@every_method
def test_a_step_is_the_same_in_one_batch_and_in_several(name, backbone_folder, pairs_file, tmp_path):
    """Ours even where the last batch is smaller; TRL averages batches, and some of its metrics over tokens in each.

    KTO's divergence is of a batch, and 0 here: the guide is new. Its pairs are two replies each.
    """
    options = {**PLAIN, "max_pairs": 8 if name in PEERS else 4 if name == "kto" else 7}
    if "guide.dropout" in dict(method(name).options()):
        options["guide.dropout"] = 0
    places, folders = (backbone_folder, pairs_file), [tmp_path / part for part in ("still", "whole", "split")]
    train(name, *places, folders[0], per_device_train_batch_size=8, **{**options, "learning_rate": 0})
    train(name, *places, folders[1], per_device_train_batch_size=8, **options)
    train(name, *places, folders[2], per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    still, whole, split = (weights(folder) for folder in folders)
    assert max((whole[key] - still[key]).abs().max() for key in still) > 1e-3
    for key, start in still.items():
        torch.testing.assert_close(split[key] - start, whole[key] - start, rtol=1e-3, atol=1e-6)
    of_whole, of_split = (report_of(folder)["log"][0] for folder in folders[1:])
    logged = ("loss", "grad_norm") if name in PEERS else of_whole.keys()
    assert {key: of_split[key] for key in logged} == pytest.approx({key: of_whole[key] for key in logged}, rel=1e-4)


# ---- what a run leaves behind -------------------------------------------------------------------------------


@every_method
def test_a_run_writes_guides_that_generate_and_a_report_on_held_out_pairs(name, finished, backbone_folder):
    folder = finished(name)
    report = report_of(folder)
    assert report["steps"] == STEPS
    everywhere = {"accuracy", "margin", "preference", "reward_chosen", "reward_rejected"}
    terms = {"dual_head": {"next_token", "gate", "gate_entropy"}, "iav": {"norm"}, "mav": {"norm"}}
    of_guides = {"kl", "accuracy_over_base"} | terms.get(name, set())
    of_replies = {"kto", "accuracy", "margin", "reward", "divergence", "kl"}
    of_pairs = everywhere | (of_guides if name != "reward" else set())
    assert set(report["held_out"]) == (of_replies if name == "kto" else of_pairs)
    json.dumps(report, allow_nan=False)
    assert [row for row in report["log"] if "loss" in row]
    model, tokenizer = AlignedModel.from_pretrained(folder), word_tokenizer()
    assert list(model.guides) == [name]
    assert model.config.training["method"] == name
    text = {"tokenizer": tokenizer, "max_new_tokens": 4, "do_sample": False}
    assert isinstance(model.generate("ask1 how", alpha=1.0, **text), str)
    ids = torch.tensor([[1, 5, 6]])
    own = AutoModelForCausalLM.from_pretrained(str(backbone_folder))(ids).logits
    assert torch.equal(model(ids, alpha=0.0).logits, own)
    assert not torch.equal(model(ids, alpha=1.0).logits, own)


@every_method
def test_a_run_moves_what_it_stores_and_leaves_the_backbone_alone(name, finished, backbone_folder):
    folder = finished(name)
    one, other = weights(folder / "checkpoint-2"), weights(folder / f"checkpoint-{STEPS}")
    assert one.keys() == other.keys() == weights(folder).keys()
    assert all(key.startswith(f"{name}.") for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert same(other, weights(folder))
    again = write_backbone(folder.parent / f"fresh-{name}")
    assert (again / "model.safetensors").read_bytes() == (backbone_folder / "model.safetensors").read_bytes()


@every_peer
def test_a_peers_trainer_leaves_the_backbone_and_eval_mode_as_they_were(name, backbone_folder, pairs_file, tmp_path):
    before = AlignedModel.from_backbone(str(backbone_folder), {}).backbone.lm.state_dict()
    options = RunOptions(str(backbone_folder), str(pairs_file), held_out=0.0)  # an evaluation would go to eval mode
    args = GuideTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, learning_rate=0.05, disable_tqdm=True
    )
    model = train_guide(method(name), options, args).aligned
    after = model.backbone.lm.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(module.training for module in model.modules())
    inside = model.guide(name).tuned
    inside = inside.get_base_model() if hasattr(inside, "get_base_model") else inside.base_model
    assert not any(module.training for module in inside.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    saved = AlignedModel.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(saved(ids, alpha=1.0).logits, model(ids, alpha=1.0).logits)


@every_peer
def test_a_peers_checkpoint_holds_our_weights_and_no_pickle_but_transformers_own(name, finished):
    checkpoint = finished(name) / "checkpoint-2"
    assert not list(finished(name).rglob("training_args.bin"))
    assert not list(finished(name).rglob("adapter_*"))
    assert not list(finished(name).rglob("README.md"))
    pickled = {path.name for path in checkpoint.iterdir() if is_pickle(path)}
    assert pickled <= {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {"optimizer.pt", "scheduler.pt"} <= pickled
    assert sum(x.numel() for x in weights(checkpoint).values()) < 20 * 8 * HIDDEN * 8  # a LoRA, no backbone


def is_pickle(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        return any(name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist())
    try:
        return len(list(pickletools.genops(path.read_bytes()))) > 2
    except ValueError:
        return False


# ---- resuming -----------------------------------------------------------------------------------------------


@every_peer
def test_a_peers_run_that_was_killed_goes_on_as_if_nothing_had_been(
    name, finished, backbone_folder, pairs_file, tmp_path
):
    whole, broken = finished(name), tmp_path / "broken"
    shutil.copytree(whole, broken)
    # As a kill after step 2 leaves it: nothing of the last checkpoint, and no final files.
    shutil.rmtree(broken / f"checkpoint-{STEPS}")
    for file in ("model.safetensors", "config.json", "report.json"):
        (broken / file).unlink()
    train(name, backbone_folder, pairs_file, broken, save_steps=2)
    assert same(weights(whole), weights(broken))
    assert same(weights(whole / f"checkpoint-{STEPS}"), weights(broken / f"checkpoint-{STEPS}"))
    losses = [[row["loss"] for row in report_of(folder)["log"] if "loss" in row] for folder in (whole, broken)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
    assert report_of(whole)["held_out"] == report_of(broken)["held_out"]


@every_peer
def test_a_peer_keeps_its_best_weights_where_that_is_asked_for(name, backbone_folder, pairs_file, tmp_path):
    """The worst by the loss, so that they are those of the first step."""
    options = {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "eval_loss"}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    train(name, backbone_folder, pairs_file, tmp_path, **options)
    state = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    best, last = state["best_global_step"], STEPS
    assert best != last
    assert same(weights(tmp_path), weights(tmp_path / f"checkpoint-{best}"))
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best}", f"checkpoint-{last}"}
    logged = next(row for row in state["log_history"] if row["step"] == best and "eval_loss" in row)
    if name == "reward":
        assert report_of(tmp_path)["held_out"]["preference"]["mean"] == pytest.approx(logged["eval_loss"], rel=1e-4)


def test_the_table_of_a_reward_model_is_of_its_scores_of_held_out_pairs(finished, backbone_folder, pairs_file):
    """Each reply scored by itself; thirteen pairs, the last batch smaller than the others."""
    folder = finished("reward")
    pairs = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    judge = Classifier(str(folder))
    aside = [row for row in pairs if is_held_out(row["prompt"], 0.2)]
    margins = [judge(row["prompt"], row["chosen"]) - judge(row["prompt"], row["rejected"]) for row in aside]
    found = report_of(folder)
    held_out = found["held_out"]
    assert {value["pairs"] for value in held_out.values()} == {len(aside)}
    assert held_out["accuracy"]["mean"] == pytest.approx(sum(x > 0 for x in margins) / len(aside))
    assert held_out["accuracy"]["interval"] == pytest.approx(wilson(sum(x > 0 for x in margins), len(aside)))
    assert held_out["margin"]["mean"] == pytest.approx(sum(margins) / len(aside), abs=1e-5)
    assert found["metrics"]["eval_accuracy"] == pytest.approx(held_out["accuracy"]["mean"])
    logged = [row["eval_accuracy"] for row in found["log"] if "eval_accuracy" in row]
    assert logged[-1] == pytest.approx(held_out["accuracy"]["mean"])


@every_peer
def test_a_finished_run_of_a_peer_is_not_trained_again(name, finished, backbone_folder, pairs_file, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(finished(name), again)
    before, report = weights(again), report_of(again)
    train(name, backbone_folder, pairs_file, again, save_steps=2)
    assert "Already trained to the end" in capsys.readouterr().out
    assert same(before, weights(again))
    assert report_of(again) == report
    # Killed after its last step, before it was written out: measured and written, not trained.
    for file in ("model.safetensors", "config.json", "report.json"):
        (again / file).unlink()
    train(name, backbone_folder, pairs_file, again, save_steps=2)
    assert same(before, weights(again))
    kept, now = report["held_out"], report_of(again)["held_out"]
    assert kept.keys() == now.keys()
    for metric, values in kept.items():
        assert now[metric]["mean"] == pytest.approx(values["mean"], rel=1e-4, abs=1e-6)


def test_a_peers_run_with_other_options_is_not_resumed(finished, backbone_folder, pairs_file, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(finished("dpo"), other)
    assert main(arguments("dpo", backbone_folder, pairs_file, other, save_steps=2, beta=0.7)) == 2
    assert "peer" in capsys.readouterr().err


# ---- names, extras ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["args-reward", "args_reward", "args"])
def test_the_reward_model_of_args_has_other_names(alias):
    assert method(alias) is method("reward")


def test_the_command_takes_an_alias_too(backbone_folder, pairs_file, tmp_path):
    train("args-reward", backbone_folder, pairs_file, tmp_path, max_steps=1)
    assert {key.split(".")[0] for key in weights(tmp_path)} == {"reward"}


@every_peer
@pytest.mark.parametrize(("package", "extra"), [("trl", "trl"), ("peft", "peft")])
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    name, package, extra, backbone_folder, pairs_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(arguments(name, backbone_folder, pairs_file, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert f"'{package}' is not installed. Install it with: pip install 'dual-head[{extra}]'" in said


def test_a_trained_base_head_is_a_second_guide_of_the_run(backbone_folder, pairs_file, tmp_path):
    train("iav", backbone_folder, pairs_file, tmp_path, train_base_head=True)
    assert {key.split(".")[0] for key in weights(tmp_path)} == {"iav", "base_head"}
    assert all(value.any() for value in weights(tmp_path).values())
    model = AlignedModel.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 6]])
    assert not torch.equal(model(ids, alpha={"base_head": 1}).logits, model(ids, alpha=0.0).logits)
    assert model.config.training["kl"]["of"] == "base_head"
