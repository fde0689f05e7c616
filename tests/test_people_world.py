"""People's preferences on a real chat model: whose prompts train and judge, and what a judge reads of a reply."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from dual_head.data.types import Pair

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
if str(EXPERIMENTS) not in sys.path:  # scripts that import each other by name
    sys.path.append(str(EXPERIMENTS))

import chat_backbone  # noqa: E402
import evidence_judge  # noqa: E402
import people_world  # noqa: E402
from evidence_data import opening  # noqa: E402
from people_world import People  # noqa: E402

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPT = ({"role": "user", "content": "How do I bake?"},)


def openings(file: Path) -> set[str]:
    return {opening(json.loads(line)["prompt"]) for line in file.read_text().split("\n") if line}


@pytest.mark.parametrize("objective", ["safer", "harmless"])
def test_no_prompt_is_in_two_parts_and_every_one_asks_for_a_short_answer(shared_data, tmp_path, objective):
    world = People(folder=tmp_path, data=shared_data, backbone="none", about=objective, mixed=(objective,))
    parts = [openings(world.part(objective, part)) for part in ("train", "judge", "dev", "test")]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert len(parts[3]) >= 300
    if objective == "safer":
        assert all(text.endswith("Answer in one or two sentences.") for text in set.union(*parts))


def test_pairs_are_written_once_in_an_order_in_which_the_first_are_of_many_prompts(monkeypatch, tmp_path):
    asked = [{"role": "user", "content": f"question {i // 5}?"} for i in range(1000)]
    pairs = [Pair((message,), f"good {i}", "bad") for i, message in enumerate(asked)]
    monkeypatch.setattr(people_world, "pairs_of", lambda data, objective: pairs)
    world = People(folder=tmp_path, data=tmp_path, backbone="none")
    file = world.part("safer", "train")
    monkeypatch.setattr(people_world, "pairs_of", lambda data, objective: [])
    assert world.part("safer", "train") == file
    first = file.read_text().split("\n")[:30]
    assert len({json.loads(line)["prompt"][0]["content"] for line in first}) > 15


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_judge_reads_one_end_of_a_reply_that_ended_and_none_of_one_that_was_cut(tmp_path, monkeypatch, template):
    world = People(folder=tmp_path, data=tmp_path, backbone="none")
    tokenizer = write_judge(tmp_path, template)
    monkeypatch.setattr(evidence_judge, "_scores", lambda world, judge, ids: ids)
    rows = [{"reply": "Knead it.", "finished": finished} for finished in (True, False)]
    ended, cut = evidence_judge.judged(world, "safer", [PROMPT] * 2, rows)
    assert ended.reply == [*cut.reply, tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in cut.reply
    assert tokenizer.decode(cut.reply) == ("Knead it." if template else " Knead it.")


def test_scores_under_autocast_are_those_in_full_precision_up_to_rounding(tmp_path):
    world = People(folder=tmp_path, data=tmp_path, backbone="none")
    write_judge(tmp_path, CHATML)
    rows = [{"reply": text, "finished": True} for text in ("Knead it.", "it", "Knead it. Knead it.")]
    bf16 = evidence_judge.judged(world, "safer", [PROMPT] * 3, rows)
    in_full = replace(world, judging=replace(world.judging, bf16=False))
    full = evidence_judge.judged(in_full, "safer", [PROMPT] * 3, rows)
    assert full != bf16
    assert bf16 == pytest.approx(full, abs=2e-2)


def test_a_judge_that_was_killed_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    backbone = tmp_path / "backbone"
    tokenizer = chat_backbone.build_tokenizer(["How do I bake? Knead it."], 300)
    chat_backbone.build_model(len(tokenizer), 32, 1).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    pairs = [Pair(({"role": "user", "content": f"question {i}?"},), "good", "bad") for i in range(400)]
    monkeypatch.setattr(people_world, "pairs_of", lambda data, objective: pairs)
    monkeypatch.setattr(evidence_judge, "SAVE_STEPS", 2)
    world = People(folder=tmp_path, data=tmp_path, backbone=str(backbone), mixed=("safer",), most=16)
    measure = evidence_judge.held_out
    monkeypatch.setattr(evidence_judge, "held_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evidence_judge.train_judge(world, "safer", steps=2)
    monkeypatch.setattr(evidence_judge, "held_out", measure)
    trained = evidence_judge.train_judge(world, "safer", steps=4)
    assert trained["resumed"]
    assert trained["held_out"]["safer"]["accuracy"] > 0.9  # "good" and "bad" are told apart in four steps
    assert not evidence_judge.train_judge(world, "safer", steps=2)["resumed"]


def interrupted(*_):
    raise KeyboardInterrupt


def write_judge(folder: Path, template: str | None):
    """Write an untrained judge of "safer"; its tokenizer."""
    torch.manual_seed(0)
    tokenizer = chat_backbone.build_tokenizer(["How do I bake? Knead it."], 300)
    tokenizer.chat_template = template
    config = chat_backbone.build_model(len(tokenizer), 32, 1).config
    config.num_labels = 1
    place = evidence_judge.judge_folder(folder, "safer")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return tokenizer
