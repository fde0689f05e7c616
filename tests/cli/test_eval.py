"""`dual-head eval`: the same questions to every system, kept answers, an honest report."""

import json
import sys
from pathlib import Path

import pytest
import torch
from files import write_backbone
from transformers import AutoConfig, LlamaConfig, LlamaForSequenceClassification

from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.cli import main
from dual_head.demo import TOY_BACKBONE
from dual_head.evaluate.run import usual_new_tokens
from dual_head.evaluate.systems import open_system, parse_systems
from dual_head.model.pretrained import load_tokenizer


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random guide on the toy backbone: it says something else than the backbone does."""
    folder = tmp_path_factory.mktemp("guides")
    tokenizer = load_tokenizer(str(TOY_BACKBONE), False)
    torch.manual_seed(0)
    model = AlignedModel.from_backbone(
        str(TOY_BACKBONE), {"dual_head": RewardHeadConfig(rank=4, init_std=0.4)}, tokenizer=tokenizer
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def evaluate(guides: Path, output: Path, *more: str) -> dict:
    models = f"base={guides}@0,guided={guides}@1"
    arguments = ["eval", "world", "--models", models, "--output_dir", str(output), "--num_samples", "6"]
    assert main([*arguments, "--max_new_tokens", "12", "--judge", "rule", *more]) == 0
    return json.loads((output / "report.json").read_text())


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["eval", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_report_says_who_won_and_how_sure_that_is(guides, tmp_path, capsys):
    report = evaluate(guides, tmp_path)
    (pair,) = report["pairs"]
    assert (pair["a"], pair["b"]) == ("guided", "base")
    assert pair["wins"] + pair["ties"] + pair["losses"] == report["benchmark"]["questions"] == 6
    assert pair["rate"] == pytest.approx((pair["wins"] + pair["ties"] / 2) / 6)
    assert pair["interval"][0] <= pair["rate"] <= pair["interval"][1]
    rows = {row["system"]: row["values"] for row in report["quality"]["rows"]}
    assert rows["base"]["kl"]["mean"] == 0.0 < rows["guided"]["kl"]["mean"]
    assert "guided against base" in capsys.readouterr().out
    assert "guided against base" in (tmp_path / "report.md").read_text()
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("judge", ["rule", "reward:{}"])
def test_dialogues_are_judged_by_a_rule_or_a_reward_model_with_no_other_option(judge, guides, tmp_path, capsys):
    """The toy backbone reads 128 tokens, so that replies of the usual 128 would leave no room for a question."""
    dialogues = [f"\n\nHuman: how do i bake bread {'now ' * i}?\n\nAssistant: you" for i in range(4)]
    rows = [{"chosen": f"{own} mix it", "rejected": f"{own} do not"} for own in dialogues]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["eval", "hh", "--source", str(tmp_path / "pairs.jsonl"), "--models", f"base={guides}@0,x={guides}@1"]
    arguments += ["--judge", judge.format(write_toy_judge(tmp_path / "judge")), "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["decoding"]["max_new_tokens"] == 64
    assert report["benchmark"]["questions"] == 4
    (pair,) = report["pairs"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == 4
    assert any("It says nothing of what replies mean" in said for said in report["warnings"]) == (judge == "rule")


def test_the_context_is_read_with_the_trust_that_was_given_and_files_of_answers_are_not_read(tmp_path, monkeypatch):
    trusted = []

    def config(name, *, trust_remote_code):
        trusted.append(trust_remote_code)
        return LlamaConfig(max_position_embeddings=40)

    monkeypatch.setattr("dual_head.backbone.load.AutoConfig.from_pretrained", config)
    backbone = write_backbone(tmp_path / "backbone")
    (tmp_path / "answers.jsonl").write_text("no answers at all")
    specs = parse_systems([f"a={backbone},b={tmp_path / 'answers.jsonl'}"])
    for trust in (True, False):
        assert usual_new_tokens([open_system(spec, trust_remote_code=trust) for spec in specs]) == 20
    assert trusted == [True, False]


def write_toy_judge(folder: Path) -> Path:
    """A random reward model that reads what the toy backbone reads."""
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(str(TOY_BACKBONE), num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    load_tokenizer(str(TOY_BACKBONE), False).save_pretrained(folder)
    return folder


def test_every_system_is_timed_in_its_own_tokens(guides, tmp_path, capsys):
    """The other backbone has fewer tokens than the toy's prompts have numbers for."""
    other = write_backbone(tmp_path / "other", spread=0.5)
    (tmp_path / "prompts.txt").write_text("user : how do i bake bread ? assistant :\n")
    arguments = ["eval", "prompts", "--source", str(tmp_path / "prompts.txt"), "--max_new_tokens", "4"]
    arguments += [
        "--models",
        f"toy={guides}@0,other={other}",
        "--efficiency",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["efficiency"]
    assert [(row["system"], row["batch_size"]) for row in rows] == [("toy", 2), ("other", 2)]
    assert rows[0]["prompt_tokens"] == rows[1]["prompt_tokens"]
    assert "Efficiency" in capsys.readouterr().out


def test_plain_models_are_measured_under_the_base_that_is_named(tmp_path):
    places = {name: write_backbone(tmp_path / name, spread=0.5, seed=seed) for seed, name in enumerate("ab")}
    (tmp_path / "prompts.txt").write_text("ask0 ask1\n")
    arguments = ["eval", "prompts", "--source", str(tmp_path / "prompts.txt"), "--max_new_tokens", "4", "--base", "a"]
    arguments += ["--models", f"a={places['a']},b={places['b']}", "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["quality"]["rows"]
    base, other = (row["values"]["kl"]["mean"] for row in rows)
    assert base == pytest.approx(0, abs=1e-5)
    assert other > 0.01


def test_a_plain_model_with_other_tokens_is_not_measured_under_the_base_and_this_is_said(tmp_path, capsys):
    places = {"a": write_backbone(tmp_path / "a", spread=0.5), "toy": TOY_BACKBONE}
    (tmp_path / "prompts.txt").write_text("ask0 ask1\n")
    arguments = ["eval", "prompts", "--source", str(tmp_path / "prompts.txt"), "--max_new_tokens", "4", "--base", "a"]
    arguments += ["--models", ",".join(f"{name}={place}" for name, place in places.items())]
    assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "kl" not in report["quality"]["rows"][1]["values"]
    note = "toy has another tokenizer than a, so no divergence and no perplexity"
    assert [text for text in report["warnings"] if "tokenizer" in text] == [note]
    assert note in " ".join(capsys.readouterr().out.split())


def test_a_second_run_asks_nobody(guides, tmp_path, monkeypatch):
    first = evaluate(guides, tmp_path)

    def asked(*_):
        raise AssertionError("a model was asked again")

    monkeypatch.setattr("dual_head.evaluate.systems.guided.GuidedSystem.load_model", asked)
    second = evaluate(guides, tmp_path)
    assert {**second, "command": ""} == {**first, "command": ""}


def test_what_changed_is_asked_again(guides, tmp_path):
    short = evaluate(guides, tmp_path)
    longer = evaluate(guides, tmp_path, "--max_new_tokens", "20")
    tokens = [report["quality"]["rows"][1]["values"]["tokens"]["mean"] for report in (short, longer)]
    assert tokens[0] < tokens[1]


def test_answers_of_a_file_compete_and_lacking_some_is_said(guides, tmp_path, capsys):
    evaluate(guides, tmp_path / "first")
    answers = tmp_path / "first" / "answers" / "guided.jsonl"
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(answers.read_text().splitlines(keepends=True)[:4]))
    arguments = ["world", "--models", f"base={guides}@0,file={fewer}", "--num_samples", "6", "--max_new_tokens", "12"]
    arguments += ["--judge", "rule", "--output_dir", str(tmp_path / "second")]
    said = refused(capsys, *arguments)
    assert "'file' lacks 2 of 6" in said
    assert "--allow_missing" in said
    assert main(["eval", *arguments, "--allow_missing"]) == 0
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert report["pairs"][0]["wins"] + report["pairs"][0]["ties"] + report["pairs"][0]["losses"] == 4
    assert any("2 of 6 questions were left out" in warning for warning in report["warnings"])


def test_a_model_does_not_judge_itself(guides, tmp_path, capsys):
    said = refused(
        capsys,
        "world",
        "--models",
        f"base={guides}@0,x={guides}",
        "--judge",
        f"lm:{guides}",
        "--output_dir",
        str(tmp_path),
    )
    assert "not an independent judge" in said
    assert "--force" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("worlds", "--models", "x"), "Did you mean 'world'"),
        (("world", "--models", "a=/nowhere"), "/nowhere"),
        (("world", "--models", "base={guides}@0", "--judge", "rule", "--against", "bas"), "Did you mean 'base'"),
        (("world", "--models", "base={guides}@0", "--judge", "rul"), "Did you mean 'rule'"),
        (("world", "--models", "base={guides}@0", "--judge", "rule", "--judge_option", "x"), "NAME=VALUE"),
        (("truthfulqa", "--models", "base={guides}@0"), "--source"),
        (("world", "--models", "base={guides}@0", "--judge_option", "concurrency=8"), "--judge_option is of judging"),
        (("world", "--models", "base={guides}@0", "--efficiency", "1,many"), "batch sizes, such as 1,8,32, not 'many'"),
        (("hh", "--models", "x", "--baseline_models", "DPO,GenARM"), "--models dual_head=PATH,DPO=PATH"),
    ],
)
def test_bad_input_is_one_paragraph_with_a_remedy(guides, tmp_path, capsys, arguments, said):
    given = [argument.format(guides=guides) for argument in arguments]
    assert said in refused(capsys, *given, "--output_dir", str(tmp_path))


@pytest.fixture
def refused_at_once(guides, tmp_path, capsys, monkeypatch):
    """What `eval prompts` says where it refuses options before any model is asked and anything is written."""

    def asked(*_):
        raise AssertionError("a model was asked")

    monkeypatch.setattr("dual_head.evaluate.systems.guided.GuidedSystem.load_model", asked)
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.json"
    prompts.write_text("user : how do i bake bread ? assistant :\n")
    answers.write_text(json.dumps([{"instruction": prompts.read_text().strip(), "output": "mix it"}]))
    places = {"guides": guides, "backbone": write_backbone(tmp_path / "judge"), "answers": answers}

    def refuse(*arguments: str, models: str = "base={guides}@0,guided={guides}@1") -> str:
        flags = ["--models", models, "--max_new_tokens", "8", *arguments, "--output_dir", str(tmp_path / "out")]
        error = refused(capsys, "prompts", "--source", str(prompts), *(text.format(**places) for text in flags))
        assert not (tmp_path / "out").exists()
        return error

    return refuse


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--judge", "rule:words"), ("rule:module:function", "reward:PATH")),
        (("--judge", "rule:longest"), ("Did you mean 'longer'?",)),
        (("--judge", "lm:{backbone}", "--judge_option", "template=scores-v1"), ("a choice between a few",)),
        (("--reward", "no_such_module:words"), ("Cannot import the reward",)),
        (("--reward", "/nowhere/reward"), ("is not a reward",)),
        (("--embedder", "/nowhere/embedder"), ("There is no embedder in '/nowhere/embedder'",)),
        (("--judge", "rule:no_such_module:words"), ("Cannot import the reward",)),
        (("--judge", "reward:/nowhere/judge"), ("There is no folder '/nowhere/judge'",)),
        (("--reward", "rule:concise", "--reward", "dual_head.replies.rules:concise"), ("rewards are named 'concise'",)),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_judge_or_measure_is_refused_before_anybody_is_asked(refused_at_once, arguments, said):
    if arguments[0] == "--embedder":
        pytest.importorskip("sentence_transformers", reason="needs pip install 'dual-head[embeddings]'")
    error = refused_at_once(*arguments)
    assert all(part in error for part in said)


@pytest.mark.parametrize(("rule", "package"), [("plain", "textstat"), ("positive", "textblob")])
def test_the_package_of_a_rule_that_judges_is_asked_for_before_anybody_is_asked(
    refused_at_once, monkeypatch, rule, package
):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"'{package}' is not installed" in refused_at_once("--judge", f"rule:{rule}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--top_p", "0.9", "--top_k", "5"), "--top_p, --top_k are of sampling, and nothing is sampled here."),
        (("--against", "base"), "--against is of judging, and nothing is judged here. Add --judge, or leave it out"),
        (("--one_order",), "--one_order is of judging"),
        (("--skip_measures", "--reward", "rule:concise"), "--reward is of measuring, and nothing is measured here."),
        (("--skip_measures", "--base", "base", "--embedder", "x"), "--embedder, --base are of measuring"),
        (("--endpoint_option", "concurency=2"), "--endpoint_option is of endpoints, and no system is one here."),
        (("--base", "guided"), "--base is of plain models and adapters, and 'guided' is neither."),
        (("--efficiency", "--max_new_tokens", "1"), "--efficiency is of the time between tokens, and replies have one"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused_with_what_brings_it(refused_at_once, arguments, said):
    assert said in refused_at_once(*arguments)


@pytest.mark.parametrize(
    ("models", "more"),
    [("file={answers}", ()), ("best=best_of:2:rule:concise:of:{guides}", ("--temperature", "1"))],
)
def test_what_is_no_model_of_this_machine_is_not_timed(refused_at_once, models, more):
    assert "--efficiency is of models of this machine" in refused_at_once("--efficiency", *more, models=models)


def test_a_report_outlives_what_could_not_be_timed(guides, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise DualHeadError("There is too little memory.")

    monkeypatch.setattr("dual_head.evaluate.run._efficiency", fails)
    arguments = ["--models", f"base={guides}@0,guided={guides}@1", "--num_samples", "6", "--max_new_tokens", "12"]
    arguments += ["--judge", "rule", "--efficiency", "--output_dir", str(tmp_path)]
    assert "too little memory" in refused(capsys, "world", *arguments)
    (pair,) = json.loads((tmp_path / "report.json").read_text())["pairs"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == 6
    assert (tmp_path / "report.html").is_file()


def test_time_and_memory_are_added_to_what_was_written_before(guides, tmp_path, monkeypatch):
    def measured(*_):
        assert "efficiency" not in json.loads((tmp_path / "report.json").read_text())
        return {"efficiency": []}

    monkeypatch.setattr("dual_head.evaluate.run._efficiency", measured)
    assert evaluate(guides, tmp_path, "--efficiency")["efficiency"] == []


@pytest.mark.slow
def test_a_reply_that_no_file_takes_is_judged_and_written(guides, tmp_path):
    evaluate(guides, tmp_path / "first")
    kept = (tmp_path / "first" / "answers" / "guided.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "replies": ["bake \ud800 bread"]} for line in kept]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["eval", "world", "--models", f"base={guides}@0,broken={broken}", "--num_samples", "6"]
    arguments += ["--max_new_tokens", "12", "--judge", "rule", "--output_dir", str(tmp_path / "second")]
    assert main(arguments) == 0
    (pair,) = json.loads((tmp_path / "second" / "report.json").read_text())["pairs"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == 6


def test_an_answer_without_a_reply_is_a_missing_one(guides, tmp_path, capsys):
    evaluate(guides, tmp_path / "first")
    kept = (tmp_path / "first" / "answers" / "guided.jsonl").read_text().splitlines()
    silent = json.dumps({**json.loads(kept[0]), "replies": [], "tokens": [], "finished": []})
    file = tmp_path / "file.jsonl"
    file.write_text("\n".join([silent, *kept[1:]]) + "\n")
    arguments = ["world", "--models", f"base={guides}@0,file={file}", "--num_samples", "6", "--max_new_tokens", "12"]
    arguments += ["--judge", "rule", "--output_dir", str(tmp_path / "second")]
    assert "'file' lacks 1 of 6" in refused(capsys, *arguments)
    assert main(["eval", *arguments, "--allow_missing"]) == 0


def test_nan_rewards_are_counted_and_not_averaged(guides, tmp_path, monkeypatch):
    (tmp_path / "odd_rule.py").write_text(
        "def odd(prompt, reply):\n    return float('nan') if 'bake' in str(prompt) else float(len(reply))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("odd_rule", None)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("user : how do i bake bread ? assistant :\nuser : how do i grow tomatoes ? assistant :\n")
    models = f"base={guides}@0,guided={guides}@20"
    arguments = ["eval", "prompts", "--source", str(prompts), "--models", models, "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--max_new_tokens", "8", "--reward", "odd_rule:odd", "--judge", "rule:odd_rule:odd"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pairs"][0]["unparsable"] == 1
    for row in report["quality"]["rows"]:
        assert row["values"]["reward:odd"]["missing"] == 1
        assert row["values"]["reward:odd"]["n"] == 1


def choices(file: Path) -> Path:
    rows = [
        {
            "question": f"how can i ask{i} ?",
            "mc0_targets": {"good1": 1, "bad1": 0},
            "mc1_targets": {"good1": 1, "bad1": 0, "bad2": 0},
            "mc2_targets": {"good1": 1, "good2": 1, "bad1": 0, "bad2": 0},
        }
        for i in range(5)
    ]
    file.write_text(json.dumps(rows))
    return file


def test_truthfulqa_scores_every_system_and_keeps_the_scores(tmp_path, monkeypatch):
    backbone = write_backbone(tmp_path / "backbone", spread=0.5)
    source = choices(tmp_path / "mc_task.json")
    arguments = [
        "eval",
        "truthfulqa",
        "--source",
        str(source),
        "--models",
        f"a={backbone}",
        "--models",
        f"b={backbone}",
    ]
    arguments += ["--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    values = [row["values"] for row in report["quality"]["rows"]]
    assert values[0] == values[1]
    assert 0 < values[0]["MC2"]["mean"] < 1
    assert report["tables"][0]["rows"] == [["b", "+0.000 (+0.000 to +0.000)", "+0.000 (+0.000 to +0.000)"]]
    monkeypatch.setattr("dual_head.evaluate.multiple_choice.continuation_logps", None)  # nobody is asked again
    assert main(arguments) == 0


def test_the_seed_picks_the_choices_of_truthfulqa(tmp_path, monkeypatch):
    backbone = write_backbone(tmp_path / "backbone", spread=0.5)
    source, picked = choices(tmp_path / "mc_task.json"), []

    def scores(benchmark, system, questions, *_):
        picked.append([question.prompt for question in questions])
        raise DualHeadError("That is enough.")

    monkeypatch.setattr("dual_head.evaluate.multiple_choice._scores", scores)
    arguments = ["eval", "truthfulqa", "--source", str(source), "--models", f"a={backbone}", "--num_samples", "2"]
    for seed in range(6):
        assert main([*arguments, "--seed", str(seed), "--output_dir", str(tmp_path / "out")]) == 2
    assert len(set(map(tuple, picked))) > 1


def test_what_means_nothing_to_truthfulqa_is_refused_by_name(tmp_path, capsys):
    arguments = ["truthfulqa", "--source", "x", "--models", "a=b", "--output_dir", str(tmp_path)]
    valued = ("judge", "judge_option", "reward", "embedder", "against", "base", "split", "max_new_tokens", "top_k")
    given = [(f"--{name}", "7") for name in valued] + [("--temperature", "0.5"), ("--top_p", "0.5")]
    switches = ("chat", "one_order", "efficiency", "skip_measures", "allow_missing", "force")
    for flag, *value in [*given, *((f"--{name}",) for name in switches)]:
        assert f"{flag} would change nothing. Leave it out." in refused(capsys, *arguments, flag, *value)
    assert "--chat, --one_order would change" in refused(capsys, *arguments, "--one_order", "--chat")


def test_as_many_questions_are_asked_as_were_wanted_where_some_do_not_fit(guides, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    long = "user : " + "how do i bake bread " * 40 + "? assistant :"
    short = [f"user : how do i bake bread {'now ' * i}? assistant :" for i in range(4)]
    prompts.write_text("\n".join(["\n".join((long + " " * i, text)) for i, text in enumerate(short)]) + "\n")
    arguments = ["eval", "prompts", "--source", str(prompts), "--models", f"base={guides}@0", "--num_samples", "3"]
    arguments += ["--raw", "--max_new_tokens", "8", "--skip_measures", "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["benchmark"]["questions"] == 3
    assert all(example["prompt"] in short for example in report["examples"])
    assert "a random 3 of those that fit" in capsys.readouterr().out
