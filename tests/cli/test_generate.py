"""`dual-head generate` of many prompts: in a running batch where that is faster, in the order of the prompts."""

import json
import sys

import pytest
from files import write_guides

from dual_head import AlignedModel, HiddenConfig, RewardHeadConfig
from dual_head.cli import generate, main
from dual_head.cli.loading import load_guided
from dual_head.data import Cut
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


@pytest.mark.parametrize("batched", [True, False])
def test_a_reply_without_an_end_is_marked(guides, prompts, requests, tmp_path, monkeypatch, batched):
    replies = [row["output"].split() for row in rows(guides, prompts, tmp_path / "all.jsonl")]
    end = next(word for words in replies for word in words if not all(word in words for words in replies))

    def load(args):
        model, tokenizer = load_guided(args)
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(end)
        return model, tokenizer

    monkeypatch.setattr(generate, "load_guided", load)
    if not batched:
        monkeypatch.setattr(offline, "is_faster", lambda *_, **__: False)
    marked = rows(guides, prompts, tmp_path / "marked.jsonl")
    assert len(requests) == 1 + batched
    assert {row.get("cut") for row in marked} == {True, None}
    for row in marked:
        assert ("cut" in row) == (end not in row["output"].split())


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


def test_the_best_of_several_samples_is_what_the_guides_or_a_reward_score_highest(guides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kinds.py").write_text(
        "seen = []\n\n\ndef words(prompt, reply):\n    seen.append(reply)\n    return len(set(reply.split()))\n"
    )
    common = ["generate", guides, "--prompt", "ask0 ask1", "--chat", "--max_new_tokens", 8, "--seed", 0, "--alpha", 0]
    replies = {}
    for name, more in {
        "one": ["--temperature", 1],
        "guides": ["--best_of", 6],
        "again": ["--best_of", 6, "--batch_size", 4],
        "words": ["--best_of", 6, "--best_by", "kinds:words"],
    }.items():
        output = tmp_path / f"{name}.jsonl"
        assert main([*map(str, [*common, *more, "--output", output])]) == 0
        (replies[name],) = (json.loads(line) for line in output.read_text().splitlines())
    assert "best_of" not in replies["one"]
    kinds = [len(set(reply.split())) for reply in sys.modules["kinds"].seen]
    assert len(kinds) == 6
    assert replies["words"]["reward:words"] == max(kinds) > min(kinds)
    model = AlignedModel.from_pretrained(str(guides))
    chosen, other = replies["guides"], replies["words"]
    prompt = [{"role": "user", "content": "ask0 ask1"}]
    own = [score.reward for score in model.score([prompt] * 2, [Cut(row["output"]) for row in (chosen, other)])]
    assert chosen["reward:guides"] == pytest.approx(own[0], abs=1e-4)
    assert chosen["cut"] is other["cut"] is True
    assert own[0] >= own[1]  # of the same six samples, seeded alike
    assert replies["again"]["best_of"] == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--best_by", "x:y"], "Say how many with --best_of"),
        (["--best_of", "2", "--trace"], "--trace does not"),
        (["--best_of", "2", "--num_beams", "2"], "--num_beams does not"),
        (["--best_of", "2", "--temperature", "0"], "--temperature 0 does not"),
        (["--best_of", "2", "--best_by", "nothing"], "'nothing' is not a reward"),
    ],
)
def test_what_best_of_n_cannot_keep_is_refused(guides, capsys, arguments, said):
    assert main(["generate", str(guides), "--prompt", "ask0", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["top_p", "top_k"])
def test_a_choice_among_samples_where_nothing_is_sampled_is_refused(guides, option, capsys, prompts, tmp_path):
    command = ["generate", str(guides), "--prompts", str(prompts), "--max_new_tokens", "2", f"--{option}", "1"]
    assert main(command) == 2
    assert f"--{option} is of sampling" in capsys.readouterr().err
    assert main([*command, "--temperature", "0"]) == 2
    assert main([*command, "--temperature", "1", "--output", str(tmp_path / "out.jsonl")]) == 0
