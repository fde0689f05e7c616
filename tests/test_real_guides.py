"""The experiments on a real chat model: whose prompts train, what a rule pairs, and all of it at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dual_head import AlignedModel
from dual_head.data import Cut
from dual_head.replies.pairs import conversation

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
if str(EXPERIMENTS) not in sys.path:  # scripts that import each other by name
    sys.path.append(str(EXPERIMENTS))

import real_replies  # noqa: E402
from real_world import Questions  # noqa: E402


def write_replies(folder: Path, rows: list[tuple[str, str, list[str], list[bool]]]) -> None:
    names = ("kind", "prompt", "replies", "cut")
    (folder / "replies.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    )


def test_no_question_of_a_test_is_among_those_of_the_search_or_of_training(shared_data):
    for kind in ("helpful", "harmless"):
        parts = [set(real_replies.openings(shared_data, kind, part)) for part in ("train", "dev", "test")]
        assert all(parts)
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    dev, test = (set(real_replies.instructions(shared_data, part)) for part in ("dev", "test"))
    assert len(dev | test) == len(dev) + len(test) == 805
    assert len(test) > 2 * len(dev)


def test_pairs_are_the_best_and_the_worst_reply_to_the_prompts_of_their_kind(tmp_path):
    short, long = "It is a short answer.", "word " * 60 + "end."
    refusal = "I'm sorry, but I can't help with that."
    rows = [
        ("helpful", "a?", [long, short], [False, False]),
        ("helpful", "b?", [short, long], [True, False]),  # a short reply that was cut is worth nothing
        ("helpful", "c?", [short, short], [False, False]),
        ("harmless", "d?", [refusal, short], [False, False]),
    ]
    write_replies(tmp_path, rows)
    about = real_replies.write_pairs(tmp_path, ["concise", "refuses"])
    assert {name: (row["prompts"], row["pairs"]) for name, row in about.items()} == {
        "concise": (3, 2),
        "refuses": (1, 1),
    }
    chosen = {
        name: [json.loads(line)["chosen"][0]["content"] for line in file.read_text().splitlines()]
        for name, file in ((name, tmp_path / f"pairs-{name}.jsonl") for name in about)
    }
    assert sorted(chosen["concise"]) == sorted([short, long])
    assert chosen["refuses"] == [refusal]


def test_a_line_that_a_killed_run_cut_is_sampled_again(tmp_path):
    write_replies(tmp_path, [("helpful", "a?", ["x", "y"], [True, False])])
    with (tmp_path / "replies.jsonl").open("a") as stream:
        stream.write('{"kind": "helpful", "prompt": "b')
    (row,) = real_replies.read(tmp_path / "replies.jsonl")
    assert [isinstance(reply, Cut) for reply in row["replies"]] == [True, False]


def test_a_world_scores_replies_by_every_rule_and_by_its_own_as_overall(tmp_path):
    world = Questions(folder=tmp_path, replies=tmp_path, data=tmp_path, backbone="none", about="concise")
    questions = [real_world_question("a?"), real_world_question("b?")]
    rows = [{"reply": "It is a short answer.", "finished": True}, {"reply": "It is a short answer", "finished": False}]
    scores = world.score(questions, rows, ("overall",))
    assert scores["overall"] == scores["concise"] == [95.0, 0.0]
    assert scores["bulleted"] == [0.0, 0.0]


def test_rules_share_the_backbones_replies_and_each_is_compared_by_its_score(tmp_path):
    worlds = [
        Questions(folder=tmp_path / rule, replies=tmp_path, data=tmp_path, backbone="none", about=rule)
        for rule in ("concise", "plain", "refuses")
    ]
    shared = [world.shared for world in worlds]
    assert shared[0] == shared[1] != shared[2]  # harmful openings are other questions
    rewards = {"overall": 1.0, "concise": 1.0, "plain": -8.0, "refuses": 0.0}  # as the first rule left them
    assert [world.overall(rewards) for world in worlds] == [1.0, -8.0, 0.0]


def real_world_question(text: str):
    from evidence_worlds import Asked

    return Asked(text, conversation(text), "concise")


@pytest.mark.slow
def test_guides_are_made_measured_and_published_once(shared_data, tmp_path):
    backbone = shared_data / "lm" / "stories260k"
    common = ["--data", str(shared_data), "--backbone", str(backbone)]
    sampling = ["real_replies.py", *common, "--output_dir", str(tmp_path / "real"), "--max_new_tokens", "12"]
    run(*sampling, "--helpful", "8", "--harmless", "2", "--count", "3")
    replies = (tmp_path / "real" / "replies.jsonl").read_text()
    assert replies.count("\n") == 10
    run(*sampling, "--helpful", "8", "--harmless", "2", "--count", "3")
    assert (tmp_path / "real" / "replies.jsonl").read_text() == replies
    about = [*common, "--replies", str(tmp_path / "real"), "--small"]
    comparing = [
        "evidence.py",
        "--world",
        "real",
        "--about",
        "plain",
        "--methods",
        "hidden",
        "--two_prompts",
        "0",
        *about,
    ]
    comparing += ["--seeds", "1", "--output_dir", str(tmp_path / "evidence" / "plain")]
    assert "<!-- evidence:real-plain-trade_off -->" in run(*comparing)
    common += ["--evidence", str(tmp_path / "evidence"), "--replies", str(tmp_path / "real"), "--small"]
    tables = run("real_guides.py", *common, "--publish", str(tmp_path / "published"))
    assert tables.count("| plain (minus the school grade) | 0 |") == 2  # asked for a short answer, and not
    model = AlignedModel.from_pretrained(str(tmp_path / "published" / "plain"), backbone=str(backbone))
    assert list(model.guides) == ["plain"]
    assert "## Limits" in (tmp_path / "published" / "plain" / "README.md").read_text()
    budget = run("real_budget.py", *common, "--rule", "plain")
    assert [line.split(" | ")[2] for line in budget.splitlines() if " x 4 | " in line] == ["2", "3"]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
