"""Guides on a backbone of int8 weights: the quantised model's bits at 0, one guide on both copies, one merge of it."""

import json

import pytest
import torch
from files import write_backbone, write_guides, write_pairs
from transformers import AutoModelForCausalLM, TorchAoConfig

from dual_head import AlignedModel
from dual_head.cli import main
from dual_head.export.merge import merge
from dual_head.guides import guide_class
from dual_head.guides.linear import LinearConfig

quantization = pytest.importorskip("torchao.quantization", reason="needs pip install 'dual-head[quantization]'")
pytestmark = [
    pytest.mark.slow,  # torchao is of its command's environment: wherever it is, transformers imports it
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

IDS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
KINDS = ("hidden", "linear", "multilayer", "reward_head")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("quantised") / "backbone", spread=0.3)


def int8(backbone):
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return AutoModelForCausalLM.from_pretrained(backbone, quantization_config=config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_0_is_the_quantised_model_and_a_guide_is_read_back_on_either_copy(backbone, tmp_path, kind):
    lm = int8(backbone)
    model = AlignedModel.from_backbone(lm, {"g": guide_class(kind).Config()})
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        assert torch.equal(model(IDS, alpha=0.0).logits, lm(IDS).logits)
        guided = model(IDS, alpha=1.0).logits
        assert (guided - lm(IDS).logits).abs().max() > 0.1
        model.save_pretrained(tmp_path)
        assert torch.equal(AlignedModel.from_pretrained(str(tmp_path), backbone=lm)(IDS, alpha=1.0).logits, guided)
        whole = AlignedModel.from_pretrained(str(tmp_path), backbone=str(backbone))(IDS, alpha=1.0).logits
    assert 0 < (whole - guided).abs().max() < 0.1 * guided.abs().max()  # what eight bits lose


def test_a_merge_keeps_the_quantised_layers_and_adds_the_guide_to_the_head(backbone, tmp_path):
    write_guides(tmp_path / "g", backbone, {"g": LinearConfig(rank=4)})
    model = AlignedModel.from_pretrained(str(tmp_path / "g"), backbone=int8(backbone))
    merged = merge(model, alpha=1.0)
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS, alpha=1.0).logits, atol=1e-4, rtol=1e-4)
    layer = merged.model.layers[0].mlp.down_proj.weight
    assert type(layer).__name__ == type(model.backbone.lm.model.layers[0].mlp.down_proj.weight).__name__ != "Parameter"


def test_a_guide_trains_beside_int8_weights_the_same_from_a_cache_and_without_one(backbone, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 24)
    source = ["--model_name_or_path", backbone, "--dataset_name", pairs, "--quantization", "int8"]
    options = ["--max_steps", 3, "--per_device_train_batch_size", 4, "--learning_rate", 0.01, "--disable_tqdm", "true"]
    options += ["--eval_strategy", "no", "--save_strategy", "no"]
    runs = {"streamed": source, "cached": ["--feature_cache", tmp_path / "cache"]}
    assert main([str(part) for part in ["cache", *source, "--output_dir", tmp_path / "cache"]]) == 0
    losses = {}
    for name, inputs in runs.items():
        folder = tmp_path / name
        assert main([str(part) for part in ["train", "hidden", *inputs, *options, "--output_dir", folder]]) == 0
        log = json.loads((folder / "report.json").read_text())["log"]
        losses[name] = log[-1]["train_loss"]
    assert losses["cached"] == pytest.approx(losses["streamed"], rel=1e-3)
