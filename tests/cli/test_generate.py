"""`dual-head generate` of many prompts: in a running batch where that is faster, in the order of the prompts."""

import json

import pytest
from files import write_guides

from dual_head import HiddenConfig, RewardHeadConfig
from dual_head.cli import main
from dual_head.errors import DualHeadError
from dual_head.serve import offline
from dual_head.serve.engine import Engine

PROMPTS = [" ".join(f"ask{i % 8}" for i in range(n)) for n in (1, 9, 3, 14, 2, 6)]


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory):
    kinds = {"edit": HiddenConfig(), "head": RewardHeadConfig(num_heads=2, head_dim=4)}
    return write_guides(tmp_path_factory.mktemp("guides"), backbone_folder, kinds, spread=0.3)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


@pytest.fixture
def requests(monkeypatch):
    """How many requests each engine was given."""
    counts = []
    as_they_end = Engine.as_they_end
    monkeypatch.setattr(
        Engine, "as_they_end", lambda self, requests: counts.append(len(requests)) or as_they_end(self, requests)
    )
    return counts


def rows(guides, prompts, output, *arguments) -> list[dict]:
    options = ["--prompts", prompts, "--alpha", "edit=2,head=0.5", "--max_new_tokens", 7, "--output", output]
    assert main(["generate", *map(str, [guides, *options, *arguments])]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_many_prompts_run_in_one_batch_and_reply_as_padded_ones_do(guides, prompts, requests, tmp_path, monkeypatch):
    batched = rows(guides, prompts, tmp_path / "batched.jsonl", "--batch_size", 2)
    assert requests == [len(PROMPTS)]
    monkeypatch.setattr(offline, "is_faster", lambda *_, **__: False)
    padded = rows(guides, prompts, tmp_path / "padded.jsonl", "--batch_size", 2)
    assert requests == [len(PROMPTS)]
    assert batched == padded
    assert [row["prompt"] for row in batched] == PROMPTS
    assert len({row["output"] for row in batched}) > 1


def test_a_row_is_written_once_it_and_those_before_it_have_ended(guides, prompts, tmp_path, monkeypatch):
    output, as_they_end, counts = tmp_path / "out.jsonl", Engine.as_they_end, []

    def interrupted(self, requests):
        pieces = dict(as_they_end(self, requests))
        for i in (1, 0, 2):
            yield i, pieces[i]
            counts.append(len(output.read_text().splitlines()) if output.exists() else 0)
        raise DualHeadError("the power is gone")

    monkeypatch.setattr(Engine, "as_they_end", interrupted)
    arguments = [guides, "--prompts", prompts, "--max_new_tokens", 2, "--output", output]
    assert main(["generate", *map(str, arguments)]) == 2
    assert counts == [0, 2, 3]
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == PROMPTS[:3]


@pytest.mark.parametrize(
    "arguments", [["--temperature", "1", "--seed", "3"], ["--num_beams", "2"], ["--trace"]], ids=lambda x: x[0]
)
def test_what_the_batch_would_do_otherwise_stays_with_generate(guides, prompts, requests, tmp_path, arguments):
    assert len(rows(guides, prompts, tmp_path / "out.jsonl", *arguments)) == len(PROMPTS)
    assert requests == []
