"""Rounds on a model's own replies: what each one samples and trains on, and that a stopped run goes on."""

import json

import pytest

from dual_head import AlignedModel, GuideTrainingArguments, method
from dual_head.cli import main
from dual_head.demo import TOY_BACKBONE
from dual_head.errors import DualHeadError
from dual_head.rounds import Rounds, Sampling

PROMPTS = [
    f"user : how do i {verb} {thing} ? assistant :" for verb in ("paint", "fix") for thing in ("a wall", "a door")
]
PROMPTS += [f"how can i {verb} ?" for verb in ("bake bread", "cook rice", "plant a tree", "sew")]


def length(_prompt, reply: str) -> float:
    return float(len(reply))


def rounds_in(folder, reward=length, **options) -> Rounds:
    def training(place: str) -> GuideTrainingArguments:
        return GuideTrainingArguments(
            output_dir=place, max_steps=2, learning_rate=1e-2, save_strategy="no", eval_strategy="no",
            disable_tqdm=True, report_to="none",
        )  # fmt: skip

    given = {"sampling": Sampling(count=3, max_new_tokens=6), "held_out": 0.3, **options}
    return Rounds(
        folder=folder, backbone=str(TOY_BACKBONE), prompts=PROMPTS, reward=("length", reward),
        method=method("hidden"), training=training, **given,
    )  # fmt: skip


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_round_samples_from_the_guide_before_it_and_trains_on_the_pairs_of_all(tmp_path, monkeypatch):
    loaded, load = [], Rounds._model
    monkeypatch.setattr(
        Rounds, "_model", lambda self, guide, tokenizer: loaded.append(guide) or load(self, guide, tokenizer)
    )
    first, second = rounds_in(tmp_path).run(2)
    guides = [tmp_path / f"round-{n}" / "guide" for n in (1, 2)]
    assert loaded == [None, None, guides[0], guides[0], guides[1]]  # measured, sampled, measured, sampled, measured
    replies = [lines(tmp_path / f"round-{n}" / "replies.jsonl") for n in (1, 2)]
    asked = {row["prompt"][0]["content"] for row in replies[0]}
    assert asked < set(PROMPTS)  # the others are held out
    assert asked == {row["prompt"][0]["content"] for row in replies[1]}
    assert [row["replies"] for row in replies[0]] != [row["replies"] for row in replies[1]]
    for row in replies[0]:
        assert row["scores"] == [length("", reply) for reply in row["replies"]]
    pairs = lines(tmp_path / "round-2" / "pairs.jsonl")
    assert len(pairs) == second.pairs > first.pairs == len(lines(tmp_path / "round-1" / "pairs.jsonl"))
    assert pairs[: first.pairs] == lines(tmp_path / "round-1" / "pairs.jsonl")
    for pair in pairs:
        assert pair["prompt"] in [row["prompt"] for row in replies[0]]  # as it was sampled from
        assert length("", pair["chosen"][0]["content"]) > length("", pair["rejected"][0]["content"])
    assert first.measured.kl > 0
    assert len(json.loads((tmp_path / "base" / "measure.json").read_text())) == len(PROMPTS) - len(asked)
    assert [one["number"] for one in json.loads((tmp_path / "rounds.json").read_text())] == [1, 2]
    AlignedModel.from_pretrained(str(tmp_path / "round-2" / "guide"))


def test_a_stopped_run_goes_on_where_it_was_and_ends_alike(tmp_path):
    whole = list(rounds_in(tmp_path / "whole").run(2))

    calls = 0

    def dying(prompt, reply):
        nonlocal calls
        calls += 1
        if calls > 25:  # in the second round
            raise KeyboardInterrupt
        return length(prompt, reply)

    with pytest.raises(KeyboardInterrupt):
        list(rounds_in(tmp_path / "stopped", dying).run(2))
    done = (tmp_path / "stopped" / "round-1" / "guide" / "model.safetensors").stat().st_mtime_ns
    assert list(rounds_in(tmp_path / "stopped").run(2)) == whole
    assert (tmp_path / "stopped" / "round-1" / "guide" / "model.safetensors").stat().st_mtime_ns == done
    # What is done costs nothing: no reward is computed again.
    assert list(rounds_in(tmp_path / "stopped", dying).run(2)) == whole


def test_a_reward_that_tells_no_replies_apart_is_refused(tmp_path):
    with pytest.raises(DualHeadError, match="gave 0 pairs"):
        list(rounds_in(tmp_path, lambda *_: 1.0).run(1))


def test_without_prompts_to_measure_on_nothing_is_sampled(tmp_path):
    with pytest.raises(DualHeadError, match="8 are to train on and 0 to measure"):
        list(rounds_in(tmp_path, held_out=1e-9).run(1))
    assert not (tmp_path / "round-1").exists()


def test_the_command_goes_on_with_more_rounds_and_refuses_other_ones(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["rounds", "hidden", "--model_name_or_path", str(TOY_BACKBONE), "--reward", "rule:concise"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out"), "--held_out", "0.3"]
    command += ["--max_new_tokens", "40", "--num_train_epochs", "1", "--set", "rank=2"]
    assert main([*command, "--rounds", "1"]) == 0
    assert "round 1: gain" in capsys.readouterr().out
    assert main([*command, "--rounds", "2"]) == 0
    assert "round-2/guide" in capsys.readouterr().out.replace("\n", "")
    assert main([*command, "--temperature", "0.5"]) == 2
    assert "has rounds with temperature 1.0, not 0.5" in capsys.readouterr().err
    assert AlignedModel.from_pretrained(str(tmp_path / "out" / "round-2" / "guide")).guide("hidden").config.rank == 2


def test_a_guide_of_one_pass_has_rounds_too_and_no_options_of_steps(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["rounds", "steering", "--model_name_or_path", str(TOY_BACKBONE), "--reward", "rule:concise"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out"), "--held_out", "0.3"]
    command += ["--max_new_tokens", "40", "--rounds", "1"]
    assert main([*command, "--learning_rate", "0.1", "--num_train_epochs", "1"]) == 2
    assert "not in steps. Leave out --learning_rate, --num_train_epochs" in capsys.readouterr().err
    assert not (tmp_path / "out" / "round-1").exists()  # nothing was sampled
    assert main(command) == 0
    guide = AlignedModel.from_pretrained(str(tmp_path / "out" / "round-1" / "guide")).guide("steering")
    assert guide.vectors.norm(dim=-1).min() > 0


def test_a_command_that_is_refused_claims_no_folder(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    common = ["--model_name_or_path", str(TOY_BACKBONE), "--prompts", str(tmp_path / "prompts.txt")]
    common += ["--output_dir", str(tmp_path / "out"), "--held_out", "0.3", "--max_new_tokens", "40"]
    for method_, reward, words in (
        ("hiden", "rule:concise", "Did you mean 'hidden'"),
        ("hidden", "rule:concsie", "Did you mean 'concise'"),
        ("dpo", "rule:concise", "another trainer"),
    ):
        assert main(["rounds", method_, "--reward", reward, *common]) == 2
        assert words in capsys.readouterr().err
    assert main(["rounds", "hidden", "--reward", "rule:concise", "--rounds", "1", *common]) == 0


def test_a_reward_that_was_changed_is_not_mixed_with_what_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "taste_of_rounds.py"
    module.write_text("def score(prompt, reply):\n    return len(reply)\n")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["rounds", "hidden", "--reward", "taste_of_rounds:score", "--model_name_or_path", str(TOY_BACKBONE)]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out"), "--held_out", "0.3"]
    command += ["--max_new_tokens", "6", "--rounds", "1"]
    assert main(command) == 0
    capsys.readouterr()
    module.write_text("def score(prompt, reply):\n    return -len(reply)\n")
    assert main(command) == 2
    assert "has rounds with contents of the reward" in capsys.readouterr().err


def test_fewer_rounds_again_leave_the_figures_of_the_later_ones(tmp_path):
    list(rounds_in(tmp_path).run(2))
    figures = (tmp_path / "rounds.json").read_text()
    list(rounds_in(tmp_path).run(1))
    assert (tmp_path / "rounds.json").read_text() == figures


def test_a_record_without_options_is_refused_with_the_remedy(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rounds_run.json").write_text("{}")
    command = ["rounds", "hidden", "--reward", "rule:concise", "--model_name_or_path", str(TOY_BACKBONE)]
    assert main([*command, "--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "Choose another --output_dir" in capsys.readouterr().err


def test_methods_of_other_trainers_are_refused(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a\nb")
    command = ["rounds", "dpo", "--model_name_or_path", str(TOY_BACKBONE), "--reward", "rule:concise"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 2
    assert "is trained by another trainer" in capsys.readouterr().err
    assert main([*command, "--raw"]) == 2
    assert "Leave out --raw" in capsys.readouterr().err
