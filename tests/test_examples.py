"""The examples run as their docstrings say, offline, and print what they promise."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from dual_head.demo.world import sample_requests

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(file.name for file in EXAMPLES.glob("*.py"))
PROMPT = "how do i bake bread ?"


@pytest.fixture
def example(monkeypatch, capsys):
    """Run one example in this process as `python examples/NAME ARGUMENTS` would; give what it printed."""

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def guides(tmp_path_factory) -> Path:
    """A guide of a few steps, from examples/train.py itself."""
    folder = tmp_path_factory.mktemp("guides")
    runpy.run_path(str(EXAMPLES / "train.py"))["train"](folder, steps=20, rows=400)
    return folder


def test_train_learns_to_tell_held_out_replies_apart(example, tmp_path):
    printed = example("train.py", "--steps", 40, "--output_dir", tmp_path)
    match = re.search(r"held-out accuracy: ([\d.]+) before, ([\d.]+) after 40 steps", printed)
    assert match
    before, after = map(float, match.groups())
    assert after > before + 0.03
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in tmp_path.iterdir()}


def test_steer_prints_one_reply_a_strength_and_the_backbone_at_0(example, guides):
    printed = example("steer.py", "--guides", guides, "--prompt", PROMPT, "--alpha", 0, 1, 4)
    assert re.findall(r"^alpha = ([\d.]+) +\w", printed, flags=re.MULTILINE)[:3] == ["0", "1", "4"]
    assert "alpha = 0 equals the backbone: True" in printed
    moved = re.search(r"alpha = 1 moves a logit by up to ([\d.]+)", printed)
    assert moved
    assert float(moved[1]) > 0.1


def test_trace_shows_every_token_of_the_reply(example, guides):
    printed = example("trace.py", "--guides", guides, "--prompt", PROMPT, "--alpha", 2)
    reply, _, table = printed.partition("\n\n")
    rows = [line.split() for line in table.splitlines()[1:-1]]
    assert " ".join(row[0] for row in rows).removesuffix(" </s>") == reply.strip()
    assert all(0 < float(row[1]) < 1 and float(row[2]) <= 0 and float(row[4]) >= 0 for row in rows)
    total = re.search(r"along the reply: ([\d.]+) nats", printed)
    assert total
    assert float(total[1]) == pytest.approx(sum(float(row[4]) for row in rows), abs=0.001 * len(rows))


def test_steer_trains_a_guide_when_none_is_given(example):
    assert "alpha = 0 equals the backbone: True" in example("steer.py", "--steps", 2, "--alpha", 0, 1)


def test_two_objectives_pull_their_own_ways_and_nothing_moves_at_0(example):
    printed = example("two_objectives.py", "--steps", 25, "--prompts", 24, "--alpha", 0, 1)
    rows = re.findall(r"^ +([01]) +([01]) +(-?[\d.]+) +(-?[\d.]+) +([\d.]+)$", printed, flags=re.MULTILINE)
    points = {(row[0], row[1]): tuple(map(float, row[2:])) for row in rows}
    assert list(points) == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert points["0", "0"][2] == 0
    assert all(kl > 0 for key, (_, _, kl) in points.items() if key != ("0", "0"))
    (given_by_harm, avoided_by_harm, _), (given_by_help, avoided_by_help, _) = points["0", "1"], points["1", "0"]
    assert given_by_help > given_by_harm
    assert avoided_by_harm > avoided_by_help


def test_switch_backbone_moves_a_guide_to_another_width_and_depth(example):
    printed = example("switch_backbone.py", "--steps", 5, "--width", 160)
    assert "compatible: the same tokenizer" in printed
    assert "dual_head: width 160 -> 128 (pooled), layers matched by depth (6 here, 4 there)" in printed
    assert "alpha = 0 equals the new backbone: True" in printed
    moved = re.search(r"alpha = 1 moves a logit by up to ([\d.]+)", printed)
    assert moved
    assert float(moved[1]) > 0
    assert f"an adapter has {160 * 128:,} parameters to train" in printed


def test_merge_writes_a_checkpoint_that_transformers_alone_loads(example, tmp_path):
    printed = example(
        "merge.py", "--steps", 10, "--alpha", 1.5, "--output_dir", tmp_path / "merged", "--prompt", PROMPT
    )
    assert "folded iav: linear of rank 16, alpha 1.5" in printed
    match = re.search(r"^LlamaForCausalLM: logits differ by at most ([\de.-]+)$", printed, flags=re.MULTILINE)
    assert match
    assert float(match[1]) < 1e-4
    kept = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= kept


def test_classify_trains_a_classifier_and_says_what_requests_are(example):
    printed = example("classify.py", "--steps", 2)
    assert "400 rows read" in printed
    assert len(re.findall(r"^(?:harmless|harmful ) +[01]\.\d\d  \w", printed, flags=re.MULTILINE)) == 6


@pytest.mark.slow
def test_classify_tells_harmful_requests_from_others_after_its_steps(example):
    labels = re.findall(r"^(harmless|harmful) +[01]\.\d\d  (.*)$", example("classify.py"), flags=re.MULTILINE)
    requests = sample_requests(6, seed=1, split="test")
    assert labels == [(("harmless", "harmful")[request.harmful], request.prompt) for request in requests]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_says_how_to_run_it(name):
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= 60
    assert text.startswith('"""')
    assert f"python examples/{name}" in text.split('"""')[1]
