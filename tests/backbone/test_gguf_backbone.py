"""A GGUF file as a backbone: dequantised as it is read, and found again by guides that were trained on it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gguf_files import random_llama, write_gguf
from transformers import AutoModelForCausalLM

from dual_head import AlignedModel, DualHeadError, HiddenConfig
from dual_head.backbone.gguf import write_backbone
from dual_head.backbone.load import load_backbone, load_config
from dual_head.cli import main
from dual_head.model.pretrained import load_tokenizer

IDS = torch.arange(3, 15)[None]
TEXTS = ("yes", "no", "it is", "not now", "maybe so", "well then")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", random_llama())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Eight pairs of short texts."""
    rows = [
        {"prompt": f"ask {i}?", "chosen": f" {TEXTS[i % 6]}", "rejected": f" {TEXTS[(i + 1) % 6]} {i}"}
        for i in range(8)
    ]
    place = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def guided(place: Path | str, guides: Path) -> Path:
    """A folder of one guide with random weights beside a backbone."""
    model = AlignedModel.from_backbone(str(place), {"g": HiddenConfig(rank=4)})
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(guides)
    return guides


@torch.no_grad()
def test_it_is_the_model_and_the_tokenizer_of_the_folder_that_it_converts_to(file, tmp_path, capsys):
    write_backbone(tmp_path / "folder", file)
    folder, lm = str(tmp_path / "folder"), load_backbone(str(file))
    assert torch.equal(lm(IDS).logits, load_backbone(folder)(IDS).logits)
    assert load_tokenizer(str(file)).get_vocab() == load_tokenizer(folder).get_vocab()
    assert load_config(str(file)).num_hidden_layers == lm.config.num_hidden_layers
    assert load_backbone(str(file), dtype="bfloat16").dtype == load_backbone(str(file), dtype=torch.bfloat16).dtype
    assert load_backbone(str(file), attn_implementation="eager").config._attn_implementation == "eager"


@torch.no_grad()
def test_guides_find_the_file_they_were_made_beside_and_refuse_another(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    guides = guided(file.name, tmp_path / "guides")
    monkeypatch.chdir(tmp_path)
    model = AlignedModel.from_pretrained(guides)
    assert model.config.backbone_name_or_path == str(file)
    assert torch.equal(model(IDS, alpha=0.0).logits, load_backbone(str(file))(IDS).logits)
    assert isinstance(model.generate("hi", alpha=1.0, max_new_tokens=2, chat_template=False), str)
    other = random_llama()
    torch.nn.init.normal_(other.lm_head.weight)
    with pytest.raises(DualHeadError, match="backbone"):
        AlignedModel.from_pretrained(guides, backbone=str(write_gguf(tmp_path / "other.gguf", other)))


def test_guides_train_from_its_cache_and_merge_by_choice(file, pairs, tmp_path, capsys):
    source = ["--model_name_or_path", str(file), "--dataset_name", str(pairs)]
    assert main(["cache", *source, "--output_dir", str(tmp_path / "kept")]) == 0
    steps = ["--max_steps", "2", "--learning_rate", "0.1", "--eval_strategy", "no", "--disable_tqdm", "true"]
    command = ["train", "hidden", "--feature_cache", str(tmp_path / "kept"), "--output_dir", str(tmp_path / "guides")]
    assert main([*command, *steps]) == 0
    request = ["--prompt", "ask", "--raw", "--alpha", "1", "--max_new_tokens", "2"]
    assert main(["generate", str(tmp_path / "guides"), *request]) == 0
    merging = ["merge", str(tmp_path / "guides"), "--alpha", "1", "--output_dir", str(tmp_path / "merged")]
    capsys.readouterr()
    assert main(merging) == 2
    assert "Add --dequantize to write them, or --lora" in capsys.readouterr().err
    assert not list((tmp_path / "merged").glob("*"))
    assert main([*merging, "--dequantize"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        expected = AlignedModel.from_pretrained(tmp_path / "guides")(IDS, alpha=1.0).logits
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_options_of_other_files_are_refused(file):
    with pytest.raises(DualHeadError, match="knows no device_map, revision"):
        load_backbone(str(file), device_map="auto", revision="main")


def test_a_file_that_is_cut_off_is_refused_by_its_name(file, tmp_path):
    cut = tmp_path / "cut.gguf"
    shutil.copy(file, cut)
    cut.write_bytes(cut.read_bytes()[:-2000])
    for load in (load_backbone, load_tokenizer, load_config):
        with pytest.raises(DualHeadError, match=r"transformers cannot read 'cut.gguf'"):
            load(str(cut))


def test_without_the_library_the_line_that_installs_it_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DualHeadError, match=r"pip install 'dual-head\[gguf\]'"):
        load_backbone(str(file))
