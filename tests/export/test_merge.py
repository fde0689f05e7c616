"""Exported checkpoints: transformers alone loads them and says the same words; card, command and refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from files import WORDS, word_tokenizer
from models import ARCHITECTURES, HIDDEN, VOCAB, prompts_with_images, tiny_lm
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from dual_head import AlignedModel
from dual_head.cli import main
from dual_head.errors import DualHeadError
from dual_head.export.folder import export
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ALONE = """
import json, sys
sys.modules["dual_head"] = None  # importing it fails from here on
import torch
from transformers import AutoModelForCausalLM
lm = AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompts = torch.tensor(json.load(sys.stdin))
logits = lm(prompts).logits
texts = lm.generate(prompts, do_sample=False, max_new_tokens=12)
print(json.dumps([logits.tolist(), texts.tolist()]))
"""


def guided(architecture="llama") -> AlignedModel:
    """A tiny backbone with a guide that edits its hidden state, every weight random."""
    model = AlignedModel.from_backbone(tiny_lm(architecture), {"g": HiddenConfig(rank=4)})
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory) -> Path:
    """A checkpoint with two linear guides and the tokenizer beside them, as training writes it."""
    tokenizer = word_tokenizer()
    configs = {"helpful": LinearConfig(rank=3), "safe": HiddenConfig(rank=4)}
    model = AlignedModel.from_backbone(backbone_folder, configs, tokenizer=tokenizer, alpha={"safe": 0.25})
    torch.manual_seed(3)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.config.training = {"method": "iav", "dataset": str(backbone_folder / "pairs.jsonl")}
    folder = tmp_path_factory.mktemp("guides")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments) -> int:
    return main(["merge", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    return capsys.readouterr().err


def test_transformers_alone_loads_what_the_command_writes_and_says_the_same_words(guides, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(guides, "--alpha", "helpful=1.0,safe=-0.5", "--output_dir", out) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "helpful: linear, alpha 1, rank 3" in said
    assert "safe: hidden, alpha -0.5, rank 4" in said
    assert f'AutoModelForCausalLM.from_pretrained("{out}")' in said
    assert "differ by at most" in said
    assert "untied" not in said
    prompts = torch.randint(4, len(WORDS), (50, 6), generator=torch.Generator().manual_seed(2))
    command = [sys.executable, "-c", ALONE, str(out)]
    done = subprocess.run(command, input=json.dumps(prompts.tolist()), capture_output=True, text=True, check=True)
    logits, texts = json.loads(done.stdout)
    model, alpha = AlignedModel.from_pretrained(guides), {"helpful": 1.0, "safe": -0.5}
    torch.testing.assert_close(torch.tensor(logits), model(prompts, alpha=alpha).logits, **CLOSE)
    assert texts == model.generate(prompts, alpha=alpha, do_sample=False, max_new_tokens=12).tolist()
    assert texts != model.generate(prompts, alpha=0.0, do_sample=False, max_new_tokens=12).tolist()


def test_the_card_says_what_was_merged_and_names_no_folder_of_ours(guides, backbone_folder, tmp_path):
    assert run(guides, "--output_dir", tmp_path / "out", "--alpha", "safe=0.5") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "tags": ["dual-head", "merged"]}
    assert "| safe | hidden | 0.5 | 4 |" in card
    assert "helpful" not in card
    assert "- method: `iav`" in card
    assert "- trained on: `pairs.jsonl`" in card
    assert str(backbone_folder.parent) not in card
    assert "alpha is fixed" in card
    assert "licence of the backbone" in card


def test_the_card_names_a_backbone_of_the_hub(tmp_path):
    model = guided()
    model.config.backbone_name_or_path = "some/model"
    export(model, word_tokenizer(), tmp_path, alpha=1.0)
    assert yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])["base_model"] == "some/model"


def test_a_generation_config_that_transformers_loads_but_will_not_save_is_kept(tmp_path):
    model = guided()
    model.backbone.lm.generation_config.temperature = 0.5  # without do_sample, as older models on the hub have it
    export(model, word_tokenizer(), tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.temperature == 0.5


def test_untying_and_its_cost_are_told(tmp_path, capsys):
    model = guided("llama_tied")
    model.backbone.lm.save_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "guides")
    word_tokenizer().save_pretrained(tmp_path / "backbone")
    merge_it = [tmp_path / "guides", "--backbone", tmp_path / "backbone", "--tokenizer", tmp_path / "backbone"]
    assert run(*merge_it, "--output_dir", tmp_path / "out") == 0
    assert f"costs {VOCAB * HIDDEN * 4:,} bytes" in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_left_alone_unless_told_otherwise(guides, backbone_folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_text("of the model before")
    (out / "notes.txt").write_text("mine")
    assert "replace the model in it with --overwrite" in refused(capsys, guides, "--output_dir", out)
    assert {file.name for file in out.iterdir()} == {"model-00001-of-00002.safetensors", "notes.txt"}
    assert run(guides, "--output_dir", out, "--overwrite") == 0
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert (out / "notes.txt").read_text() == "mine"
    for read in (guides, backbone_folder):
        assert "is an input of this command" in refused(capsys, guides, "--output_dir", read, "--overwrite")


def test_another_tokenizer_and_a_bad_alpha_are_refused_and_nothing_is_written(guides, tmp_path, capsys):
    other = word_tokenizer()
    other.add_tokens(["new"])
    with pytest.raises(DualHeadError, match="tokenizer"):
        export(AlignedModel.from_pretrained(guides), other, tmp_path / "out")
    assert "alpha must be a number" in refused(capsys, guides, "--output_dir", tmp_path / "out", "--alpha", "much")
    assert not (tmp_path / "out").exists()


def test_the_same_merge_again_is_checked_and_left_and_another_is_refused(guides, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(guides, "--output_dir", out, "--alpha", "1") == 0
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert run(guides, "--output_dir", out, "--alpha", "1") == 0
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert "is not empty" in refused(capsys, guides, "--output_dir", out, "--alpha", "0.5")


def test_a_checkpoint_that_is_not_what_was_merged_is_called_out(guides, tmp_path, capsys, monkeypatch):
    from dual_head.export import merge as module

    monkeypatch.setattr(module, "fold", lambda _model, _strengths, head: (head.weight.clone(), None))
    assert "Nothing was written" in refused(capsys, guides, "--output_dir", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_written_checkpoint_is_untied_and_gives_the_same_logits(architecture, tmp_path):
    model, ids = guided(architecture), torch.randint(3, VOCAB, (2, 12))
    model.backbone.lm.generation_config.max_new_tokens = 7
    tied = model.backbone.lm.config.tie_word_embeddings
    written = export(model, word_tokenizer(), tmp_path / "out", alpha=0.5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["architectures"] == [type(model.backbone.lm).__name__]
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044  # another user's server reads it too
    assert written.untied_bytes == (VOCAB * HIDDEN * 4 if tied else 0)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight
    assert torch.equal(lm.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert lm.generation_config.max_new_tokens == 7
    torch.testing.assert_close(lm(ids).logits, model(ids, alpha=0.5).logits, **CLOSE)


def test_a_model_of_images_and_text_is_merged_whole_and_named_by_what_loads_it(tmp_path):
    model, inputs = guided("llava"), prompts_with_images("llava")
    export(model, word_tokenizer(), tmp_path / "out")
    lm = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(lm(**inputs).logits, model(**inputs, alpha=1.0).logits, **CLOSE)
    assert "model = AutoModelForImageTextToText.from_pretrained(FOLDER)" in (tmp_path / "out/README.md").read_text()
