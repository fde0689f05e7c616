"""`dual-head ablate`: variants of one method on the same pairs, trained once and tabulated."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dual_head.cli import ablate, main
from dual_head.errors import DualHeadError
from dual_head.methods import method
from dual_head.train import run

CONFIGS = Path(__file__).parents[2] / "configs" / "ablations"


def plan_of(folder: Path, **changed) -> Path:
    file = folder / "plan.yaml"
    fixed = {"guide": {"gate": "constant"}, "gate_entropy": {"weight": 0.0}}
    plan = {
        "method": "dual_head",
        "held_out": 0.3,
        "guide": {"num_heads": 2, "head_dim": 8},
        "variants": {
            "As published": {},
            "fixed gate": fixed,
        },
        **changed,
    }
    file.write_text(yaml.safe_dump({key: value for key, value in plan.items() if value is not None}, sort_keys=False))
    return file


def test_every_variant_is_trained_and_tabulated_and_nothing_twice(backbone_folder, pairs_file, tmp_path, capsys):
    arguments = ["ablate", str(plan_of(tmp_path, seeds=[0, 1])), "--output_dir", str(tmp_path / "out")]
    arguments += ["--model_name_or_path", str(backbone_folder), "--dataset_name", str(pairs_file)]
    arguments += ["--max_steps", "2", "--disable_tqdm", "true"]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
    assert [(row["variant"], row["seeds"]) for row in found] == [("As published", [0, 1]), ("fixed gate", [0, 1])]
    own = found[1]["held_out"]["accuracy"]
    assert own["mean"] == pytest.approx(sum(own["by_seed"]) / 2)
    assert own["spread"] == [min(own["by_seed"]), max(own["by_seed"])]
    page = (tmp_path / "out" / "ablation.md").read_text()
    assert "| fixed gate |" in page
    report = json.loads((tmp_path / "out" / "runs" / "fixed-gate-seed1" / "report.json").read_text())
    assert report["method"]["guide"]["gate"] == "constant"
    assert report["method"]["guide"]["head_dim"] == 8  # what the variant leaves alone is the shared config's
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("Already trained to the end") == 4


@pytest.mark.slow
def test_variants_answer_beside_the_first_one(tmp_path, capsys):
    from dual_head.demo import TOY_BACKBONE
    from dual_head.demo.world import preference_rows

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(40, seed=0)))
    evaluate = {"benchmark": "world", "judge": "rule", "num_samples": 3, "max_new_tokens": 8, "skip_measures": True}
    arguments = ["ablate", str(plan_of(tmp_path, evaluate=evaluate)), "--output_dir", str(tmp_path / "out")]
    arguments += ["--model_name_or_path", str(TOY_BACKBONE), "--dataset_name", str(pairs)]
    assert main([*arguments, "--max_steps", "1", "--disable_tqdm", "true"]) == 0
    first, second = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
    assert "win_rate" not in first
    assert 0 <= second["win_rate"]["mean"] <= 1
    assert "win rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"variants": None, "varaints": {}}, "has 'varaints'"),
        ({"method": None}, "method: dual_head"),
        ({"variants": {"a": 1}}, "must be a mapping"),
        ({"variants": {"A b": {}, "a-b": {}}}, "differ in more than case"),
        ({"seeds": [0, -1]}, "whole numbers"),
        ({"evaluate": {"judge": "rule"}}, "'benchmark' and 'judge'"),
        ({"evaluate": {"benchmark": "world", "judge": "rule", "against": "fixed-gate"}}, "Put that one first"),
        ({"seed": 5}, r"'seed' in .* is of one run.*'seeds: \[0, 1, 2\]'"),
        ({"variants": {"a": {"seed": 5}}}, r"'seeds: \[0, 1, 2\]'"),
        ({"variants": {"a": {"output_dir": "elsewhere"}}}, "each run has a folder"),
        ({"resume-from-checkpoint": "x"}, "goes on by itself"),
    ],
)
def test_a_broken_plan_is_told_what_it_lacks(tmp_path, changed, said):
    with pytest.raises(DualHeadError, match=said):
        ablate.read_plan(plan_of(tmp_path, **changed))


def test_options_of_one_run_are_refused_where_there_are_several(tmp_path, capsys):
    command = ["ablate", str(plan_of(tmp_path)), "--output_dir", str(tmp_path / "out")]
    for words, remedy in (
        (["--seed", "5"], "'seeds: [0, 1, 2]'"),
        (["--seed=5"], "'seeds: [0, 1, 2]'"),
        (["--resume-from-checkpoint", "x"], "goes on by itself"),
    ):
        assert main([*command, *words]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "on the command line is of one run, and these are several" in error
        assert remedy in error
    assert not (tmp_path / "out").exists()


def test_a_win_rate_is_over_the_first_variant_alone(tmp_path):
    rates = {("b", "a"): 0.5, ("c", "a"): 0.75, ("c", "b"): 0.125}
    for seed, shift in ((0, 0.0), (1, 0.125)):
        pairs = [{"a": a, "b": b, "rate": rate + shift, "interval": [0, 1]} for (a, b), rate in rates.items()]
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "report.json").write_text(json.dumps({"pairs": pairs}))
    rows: list[dict[str, Any]] = [{"variant": name} for name in "ABC"]
    ablate._add_win_rates(rows, [tmp_path / "0", tmp_path / "1"])
    assert "win_rate" not in rows[0]
    assert [row["win_rate"]["by_seed"] for row in rows[1:]] == [[0.5, 0.625], [0.75, 0.875]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_smaples": 3}, "Did you mean '--num_samples'?"),
        ({"temperature": -1}, "--temperature must be at least 0"),
        ({"benchmark": "wolrd"}, "Did you mean 'world'?"),
        ({"skip_measures": True, "embedder": "x"}, "--embedder is of measuring"),
    ],
)
@pytest.mark.parametrize("code", [(), ("--allow_code",)])
def test_an_evaluation_that_cannot_be_read_is_refused_before_anything_is_trained(tmp_path, capsys, changed, said, code):
    evaluate = {"benchmark": "world", "judge": "rule", **changed}
    arguments = [str(plan_of(tmp_path, evaluate=evaluate)), "--output_dir", str(tmp_path / "out"), *code]
    assert main(["ablate", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_list_repeats_its_flag_for_each_of_its_items():
    options = {"benchmark": "world", "judge": "rule", "reward": ["a:f", "b:g"], "force": True, "chat": False}
    said = ablate.evaluation_arguments(options, {"As published": Path("out")})
    assert said[:5] == ["world", "--models", "as-published=out", "--judge", "rule"]
    assert said[5:] == ["--reward", "a:f", "--reward", "b:g", "--force"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_ablations_say_what_their_methods_know(file):
    plan = ablate.read_plan(file)
    chosen = method(plan["method"])
    known = {path for path, _ in chosen.options()}
    for name in plan["variants"]:
        config = ablate.variant(plan, name)
        paths = {f"{section}.{key}" for section, own in config.items() if isinstance(own, dict) for key in own}
        assert paths <= known, name


# ---- plans of others -----------------------------------------------------------------------------------------

CODE = "from pathlib import Path\nPath('ran').touch()\n\ndef longer(prompt, reply):\n    return len(reply)\n"
EVALUATION = {"benchmark": "world", "judge": "rule", "num_samples": 2, "max_new_tokens": 4, "skip_measures": True}


@pytest.mark.parametrize(
    ("changed", "by"),
    [
        ({"evaluate": {**EVALUATION, "judge": "rule:of_a_stranger:longer"}}, "judge: rule:of_a_stranger:longer"),
        ({"evaluate": {**EVALUATION, "reward": ["of_a_stranger:longer"]}}, "reward: of_a_stranger:longer"),
        ({"evaluate": {**EVALUATION, "efficiency": "--judge=rule:of_a_stranger:longer"}}, "judge: rule:of_a_stranger"),
        ({"evaluate": {**EVALUATION, "judge=rule:of_a_stranger:longer": True}}, "judge: rule:of_a_stranger:longer"),
        ({"variants": {"a": {"trust_remote_code": True}}}, "trust_remote_code: True"),
        ({"trust_remote_code": "yes"}, "trust_remote_code: yes"),
        ({"allow_code": True}, "allow_code: True"),
    ],
)
def test_a_plan_that_names_code_is_refused_before_any_of_it_runs(tmp_path, monkeypatch, capsys, changed, by):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    (tmp_path / "of_a_stranger.py").write_text(CODE)
    assert main(["ablate", str(plan_of(tmp_path, **changed)), "--output_dir", "out"]) == 2
    said = capsys.readouterr().err
    assert f"would run code here, by '{by}" in said
    assert "add --allow_code" in said
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_plans_code_runs_when_it_is_allowed_and_its_secrets_are_in_no_file(tmp_path, monkeypatch, capsys):
    from dual_head.demo import TOY_BACKBONE
    from dual_head.demo.world import preference_rows

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    Path("of_a_friend.py").write_text(CODE)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(20, seed=0)))
    tokens = []
    evaluate = {**EVALUATION, "judge": "rule:of_a_friend:longer"}
    plan = plan_of(tmp_path, evaluate=evaluate, hub_token="not-shaped-as-one", trust_remote_code=True)
    trained = run.train_guide
    monkeypatch.setattr(run, "train_guide", lambda *given: (tokens.append(given[2].hub_token), trained(*given)))
    arguments = ["ablate", str(plan), "--output_dir", "out", "--model_name_or_path", str(TOY_BACKBONE)]
    arguments += ["--dataset_name", "pairs.jsonl", "--max_steps", "1", "--disable_tqdm", "true", "--allow_code"]
    assert main(arguments) == 0
    assert Path("ran").exists()
    assert tokens == ["not-shaped-as-one"] * 2  # it is handed on,
    written = [file for file in Path("out").rglob("*") if file.is_file()]
    assert [file for file in written if b"not-shaped-as-one" in file.read_bytes()] == []  # and written nowhere
    assert json.loads(Path("out/ablation.json").read_text())["plan"]["shared"]["hub_token"] == "***"
    assert "not-shaped-as-one" not in capsys.readouterr().out
