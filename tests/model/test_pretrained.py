"""A folder of guides says to other programs how it is loaded, by one small module that is written beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from classifiers import write_dhrd
from files import word_tokenizer, write_backbone
from safetensors.torch import load_file
from torch import nn

from dual_head import AlignedModel, DualHeadError, LinearConfig, RewardHeadConfig, merge
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.model.pretrained import CODE_NAME

IDS = torch.tensor([[1, 5, 6]])

ANOTHER_PROCESS = """
import builtins, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

torch.set_grad_enabled(False)

def asks(question):
    raise SystemExit("asked: " + question)


builtins.input = asks
guides, classes, again, output = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(guides, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
assert "dual_head" not in sys.modules

from dual_head.model.pretrained import find_tokenizer

assert find_tokenizer([guides]) is not None
assert "dual_head.model.aligned" not in sys.modules

ids = torch.tensor([[1, 5, 6]])
model = AutoModelForCausalLM.from_pretrained(guides, trust_remote_code=True)
logits = [model(ids, alpha=1.0).logits]
model.save_pretrained(again)
logits.append(AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)(ids, alpha=1.0).logits)
logits.append(AutoModelForSequenceClassification.from_pretrained(classes, trust_remote_code=True)(ids).logits)
save_file(dict(zip(("first", "again", "classes"), logits, strict=True)), output)
"""


@pytest.fixture
def model(tmp_path) -> AlignedModel:
    """Two random guides on a backbone that is on disk, with a tokenizer."""
    write_backbone(tmp_path / "backbone")
    guides = {"head": RewardHeadConfig(num_heads=2, head_dim=8), "map": LinearConfig()}
    model = AlignedModel.from_backbone(str(tmp_path / "backbone"), guides, tokenizer=word_tokenizer())
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@torch.no_grad()
@pytest.mark.heavy
def test_a_process_that_has_not_imported_us_loads_what_is_saved_and_saved_again(model, tmp_path):
    guides, classes, again = tmp_path / "guides", write_dhrd(tmp_path), tmp_path / "again"
    model.save_pretrained(guides)
    word_tokenizer().save_pretrained(guides)
    command = [sys.executable, "-c", ANOTHER_PROCESS, guides, classes, again, tmp_path / "logits"]
    elsewhere = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=elsewhere, cwd=tmp_path, stdin=subprocess.DEVNULL)
    logits, expected = load_file(tmp_path / "logits"), model(IDS, alpha=1.0).logits
    torch.testing.assert_close(logits["first"], expected)
    assert torch.equal(logits["again"], logits["first"])
    torch.testing.assert_close(logits["classes"], DualHeadReasoningModel.from_pretrained(classes)(IDS).logits)
    assert files(again) == {"config.json", "model.safetensors", CODE_NAME}
    assert (again / CODE_NAME).read_text() == (guides / CODE_NAME).read_text()
    assert json.loads((again / "config.json").read_text()) == json.loads((guides / "config.json").read_text())


def test_a_folder_from_before_the_module_loads_and_gets_it_when_it_is_saved(model, tmp_path):
    model.save_pretrained(tmp_path / "guides")
    (tmp_path / "guides" / CODE_NAME).unlink()
    config = json.loads((tmp_path / "guides" / "config.json").read_text())
    del config["auto_map"]
    (tmp_path / "guides" / "config.json").write_text(json.dumps(config))
    loaded = AlignedModel.from_pretrained(tmp_path / "guides")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert CODE_NAME in files(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_dual_head.AlignedConfig",
        "AutoModelForCausalLM": "modeling_dual_head.AlignedModel",
    }


def test_a_merged_model_needs_no_module(model, tmp_path):
    model.detach("head")
    model.save_pretrained(tmp_path / "guides")
    merge(AlignedModel.from_pretrained(tmp_path / "guides")).save_pretrained(tmp_path / "merged")
    assert CODE_NAME not in files(tmp_path / "merged")
    assert "auto_map" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_an_option_that_nobody_chose_is_no_option(model, tmp_path):
    model.save_pretrained(tmp_path / "guides")
    loaded = AlignedModel.from_pretrained(tmp_path / "guides", gguf_file=None)  # as the harness hands it on
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    with pytest.raises(DualHeadError, match="Unknown option 'gguf_file' of from_pretrained"):
        AlignedModel.from_pretrained(tmp_path / "guides", gguf_file="model.gguf")
