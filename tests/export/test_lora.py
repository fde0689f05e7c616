"""A LoRA of the lm_head: PEFT gives it the logits of the guided model, and what it cannot hold is refused."""

import json
import warnings

import pytest
import torch
from files import word_tokenizer
from models import tiny_lm
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from dual_head import AlignedModel
from dual_head.cli import main
from dual_head.errors import DualHeadError
from dual_head.export.lora import lora_factors
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_head import RewardHeadConfig

peft = pytest.importorskip("peft")
LOW = {"edit": HiddenConfig(rank=3), "head": LinearConfig(rank=2)}


def guided(guides, architecture="llama", seed=1) -> AlignedModel:
    model = AlignedModel.from_backbone(tiny_lm(architecture), guides)
    torch.manual_seed(seed)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "cohere"])
@pytest.mark.parametrize("alpha", [1.0, {"edit": -0.5, "head": 2.0}, {"edit": 1.5}])
@torch.no_grad()
def test_the_factors_are_the_change_of_the_logits(architecture, alpha):
    model = guided(LOW, architecture)
    a, b = lora_factors(model, alpha=alpha)
    assert len(a) == b.shape[1] == (3 if alpha == {"edit": 1.5} else 5)
    ids = torch.tensor([[1, 5, 9, 30, 7]])
    head = model.backbone.lm.get_output_embeddings()
    expected = model(ids, alpha=alpha).logits
    head.weight = nn.Parameter(head.weight + b @ a)
    assert torch.allclose(model(ids, alpha=0.0).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_direction_a_thousandth_as_strong_as_another_is_kept_in_short_formats(dtype):
    model = AlignedModel.from_backbone(tiny_lm("llama").to(dtype), {"head": LinearConfig(rank=4)})
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        nn.init.orthogonal_(parameter)
    down = model.guide("head").head.down.weight
    down.mul_(torch.logspace(0, -3, 4)[:, None])
    a, _ = lora_factors(model, alpha=1.0)
    assert (a.float() @ down[-1] / down[-1].norm()).norm() == pytest.approx(1, abs=0.01)


@torch.no_grad()
def test_peft_loads_what_the_command_writes(backbone_folder, tmp_path, capsys):
    tokenizer = word_tokenizer()
    model = AlignedModel.from_backbone(str(backbone_folder), LOW, tokenizer=tokenizer)
    torch.manual_seed(3)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "guides")
    tokenizer.save_pretrained(tmp_path / "guides")
    out = tmp_path / "lora"
    command = ["merge", str(tmp_path / "guides"), "--lora", "--alpha", "edit=1,head=0.5", "--output_dir", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "checked" in said
    assert "PeftModel.from_pretrained" in said
    assert not any("lm_head.weight" in name for name in load_file(out / "adapter_model.safetensors"))
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone_folder), str(out))
    ids = torch.tensor([[1, 5, 9, 7]])
    assert torch.allclose(lm(ids).logits, model(ids, alpha={"edit": 1.0, "head": 0.5}).logits, atol=1e-5, rtol=1e-5)
    assert main(command) == 0  # the same again is checked and left
    assert main([*command[:4], "edit=2", *command[5:]]) == 2  # another is refused
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("guides", "alpha", "said"),
    [
        ({"head": LinearConfig()}, 1.0, "of 'head' none is known"),
        (LOW, 0.0, "No guide acts"),
        ({"gate": RewardHeadConfig(num_heads=2, head_dim=8, rank=2)}, 1.0, "cannot be merged"),
    ],
)
def test_what_a_lora_cannot_hold_is_refused(guides, alpha, said):
    with pytest.raises(DualHeadError, match=said):
        lora_factors(guided(guides), alpha=alpha)


def test_a_constant_is_refused():
    with pytest.raises(DualHeadError, match=r"constant \(bias\)"):
        lora_factors(guided({"head": LinearConfig(rank=2, bias=True)}, "phi"), alpha=1.0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("against", [None, "backbone"])
@torch.no_grad()
def test_the_lora_of_a_second_model_is_an_adapter_that_peft_loads(backbone_folder, tmp_path, against):
    """GenARM's reward model, and a model tuned by DPO or SimPO, whose policy at 1 is the adapter's model itself."""
    guide = LanguageModelConfig(tune="lora", rank=2, against=against)
    model = AlignedModel.from_backbone(str(backbone_folder), {"g": guide}).eval()
    torch.manual_seed(3)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.guide("g").tuned.save_pretrained(tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(backbone_folder)
    ids = torch.tensor([[1, 5, 9, 30, 7]])
    base = lm(ids).logits
    loaded = peft.PeftModel.from_pretrained(lm, tmp_path)(ids).logits
    assert (loaded - base).abs().max() > 0.1
    policy = model(ids, alpha=1.0).logits
    torch.testing.assert_close(policy if against else policy - base, loaded, atol=1e-4, rtol=1e-4)
