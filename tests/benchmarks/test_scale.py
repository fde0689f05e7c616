"""The page on scale is what its script gives, and the script counts what the library trains and keeps."""

import dataclasses
import sys

import pytest
import scale
import torch
from report import replaced
from scale import FULL, GATED, GUIDES, HIDDEN, LOW, SHAPES, Data, Hardware
from transformers import AutoModelForCausalLM, LlamaConfig

from dual_head import HiddenConfig, RewardHeadConfig
from dual_head.backbone.decoder import BackboneShape
from dual_head.guides import GuideConfig, guide_class, kind_of
from dual_head.ops.token_scores import auto_budget
from dual_head.train.feature_cache import Layout

SEVEN, _, SEVENTY, EIGHT = SHAPES
CONFIGS: dict[str, GuideConfig] = {
    FULL: RewardHeadConfig(),
    LOW: RewardHeadConfig(rank=64),
    HIDDEN: HiddenConfig(),
    GATED: HiddenConfig(gate="attention"),
}


def test_the_page_is_what_the_script_gives():
    page = scale.PAGE.read_text()
    assert replaced(page, scale.tables()) == page
    assert "none is measured" in page


def test_the_state_of_the_head_of_a_7b_by_hand():
    head, gate = 32000 * 4096, 3 * 4096 * 384 + 384 + 1
    assert scale.state_bytes(SEVEN, FULL) == 2 * head + 4 * (head + gate) * 4 == 2_434_799_632


def test_the_step_of_a_7b_by_hand():
    # 120 response tokens through z_LM, z_RM and dW_RM; 255 tokens through the gate, forward and by its weights.
    products = 3 * (2 * 32000 * 4096) * 120
    gate = (2 + 2) * (3 * 4096 * 384 + 384 + 1) * 255
    assert scale.step_flops(SEVEN, FULL, Data()) == products + gate == 99_185_196_540


def test_one_token_of_a_7b_reads_two_percent_more_with_a_full_head():
    # 6,738,415,616 parameters, but of the embedding one row only.
    read = 6_738_415_616 - 32000 * 4096
    assert scale.decode_ratio(SEVEN, FULL) == pytest.approx(1 + (32000 * 4096 + 4_718_977) / read)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_parameters_are_those_of_the_model(shape):
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
    )
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(x.numel() for x in lm.parameters())
    assert shape.decoder + shape.head == shape.parameters - lm.get_input_embeddings().weight.numel()


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_is_counted_as_the_library_builds_it(guide):
    config = CONFIGS[guide]
    with torch.device("meta"):
        built = guide_class(kind_of(config))(config, BackboneShape(EIGHT.hidden, EIGHT.vocab, EIGHT.layers))
    assert GUIDES[guide](EIGHT) == sum(x.numel() for x in built.parameters())


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("positions", ["all", "response"])
def test_a_cache_is_counted_as_the_library_lays_it_out(positions, dtype):
    layout = Layout(positions=positions, widths={"hidden": SEVEN.hidden}, dtype=dtype)
    rows = int(layout.rows(torch.tensor([[135, 60, 60]])))
    assert scale.cache_bytes(SEVEN, Data(), positions=positions, dtype=dtype) == 161_000 * rows * layout.row_bytes


@pytest.mark.parametrize("shape", [SEVEN, dataclasses.replace(SEVEN, hidden=64)])
def test_logits_take_what_the_library_gives_them(shape):
    assert scale.logits_bytes(shape) == auto_budget(shape.vocab, shape.hidden)


def test_a_step_is_bound_by_its_slowest_part():
    part = {"guide": FULL, "gpus": 1, "data": Data()}
    cached = scale.step_seconds(SEVEN, source="cache", hardware=Hardware(), **part)
    assert cached == {"storage": pytest.approx(32 * 255 * (4096 + 8) / 3e9)}
    fast = scale.step_seconds(SEVEN, source="cache", hardware=Hardware(storage=1e12), **part)
    assert fast["compute"] == pytest.approx(32 * 99_185_196_540 / 790e12)
    assert fast["Adam"] == pytest.approx(28 * (32000 * 4096 + 4_718_977) / 3.35e12)
    assert fast["exchange"] == 0  # alone
    two = scale.step_seconds(SEVEN, FULL, "cache", 16, Data(), Hardware(storage=1e12))
    assert two["exchange"] == pytest.approx(2 * 15 / 16 * 4 * (32000 * 4096 + 4_718_977) / 50e9)
    assert scale.step_seconds(SEVENTY, source="stream", hardware=Hardware(), **part) is None


def test_other_hardware_is_printed_and_leaves_the_page_alone(tmp_path, monkeypatch, capsys):
    page = tmp_path / "scale.md"
    page.write_text(scale.PAGE.read_text().replace("| Llama-2-7B", "| changed"))
    monkeypatch.setattr(scale, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["scale.py", "--memory", "16e9", "--pairs", "1000"])
    before = page.read_text()
    scale.main()
    assert "does not fit" in capsys.readouterr().out
    assert page.read_text() == before
    monkeypatch.setattr(sys, "argv", ["scale.py"])
    scale.main()
    assert "| changed" not in page.read_text()
