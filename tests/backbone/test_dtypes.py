"""A backbone is loaded as it is stored, or in fp32 where the processor has no products of that format."""

import json
import logging

import pytest
import torch
from files import write_backbone, write_guides
from transformers import AutoModelForCausalLM

from dual_head import AlignedModel, LinearConfig
from dual_head.backbone.dtypes import announce, multiplies
from dual_head.backbone.load import load_backbone
from dual_head.cli import main

OLD, NEW = {"avx2": True}, {"avx2": True, "avx512_bf16": True, "avx512_fp16": True}


@pytest.fixture
def processor(monkeypatch):
    """Make the processor one of these instructions, with no accelerator beside it."""
    announce.cache_clear()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return lambda able: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=str)
def short(request, tmp_path_factory):
    """A backbone that is stored in a short format, and that format."""
    folder = write_backbone(tmp_path_factory.mktemp("short"))
    AutoModelForCausalLM.from_pretrained(folder, dtype=request.param).save_pretrained(folder)
    return folder, request.param


@pytest.mark.parametrize(
    ("able", "fast"),
    [
        ({}, {torch.float32}),
        (OLD, {torch.float32}),
        ({"avx512_bf16": True}, {torch.float32, torch.bfloat16}),
        ({"amx_bf16": True}, {torch.float32, torch.bfloat16}),
        (NEW, {torch.float32, torch.bfloat16, torch.float16}),
        ({"bf16": True, "fp16_arith": True, "neon": True}, {torch.float32, torch.bfloat16, torch.float16}),
        ({"fp16_arith": True, "neon": True}, {torch.float32, torch.float16}),
    ],
)
def test_what_a_processor_multiplies_is_told_by_its_instructions(able, fast, processor):
    processor(able)
    assert {kind for kind in (torch.float32, torch.bfloat16, torch.float16) if multiplies(kind)} == fast


def test_a_short_format_is_loaded_in_fp32_where_the_processor_has_no_products_of_it(short, processor, caplog):
    folder, stored = short
    processor(OLD)
    with caplog.at_level(logging.WARNING):
        lm = load_backbone(str(folder))
        load_backbone(str(folder))
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    name = str(stored).removeprefix("torch.")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1, "said once"
    assert f"is stored in {name}" in messages[0]
    assert f"--dtype {name}" in messages[0]


@pytest.mark.parametrize("dtype", ["stored", "float16", torch.bfloat16])
def test_a_dtype_that_was_asked_for_is_had_on_any_processor(dtype, short, processor, caplog):
    processor(OLD)
    chosen = {"stored": short[1], "float16": torch.float16}.get(dtype, dtype)
    assert load_backbone(str(short[0]), dtype=dtype).dtype == chosen
    assert not caplog.records


def test_a_format_that_the_processor_multiplies_is_kept_and_nothing_said(short, processor, caplog):
    processor(NEW)
    assert load_backbone(str(short[0])).dtype == short[1]
    assert not caplog.records


def test_a_model_for_an_accelerator_is_kept_as_it_is_stored_unless_it_stays(short, processor, monkeypatch):
    processor(OLD)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert load_backbone(str(short[0])).dtype == short[1]
    assert load_backbone(str(short[0]), device_map="cpu").dtype == torch.float32


def test_guides_of_one_processor_are_those_of_another(short, processor, tmp_path):
    processor(NEW)
    write_guides(tmp_path, short[0], {"g": LinearConfig()})
    assert AlignedModel.from_pretrained(tmp_path).dtype == short[1]
    processor(OLD)
    model = AlignedModel.from_pretrained(tmp_path)  # refused were it taken for another backbone
    assert model.dtype == torch.float32
    assert {p.dtype for p in model.guides.parameters()} == {torch.float32}


def test_a_merge_writes_the_format_that_the_backbone_is_stored_in(short, processor, tmp_path, capsys):
    processor(OLD)
    write_guides(tmp_path / "guides", short[0], {"g": LinearConfig()})
    assert main(["merge", str(tmp_path / "guides"), "--output_dir", str(tmp_path / "merged")]) == 0
    kind = str(short[1]).removeprefix("torch.")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == kind
    assert load_backbone(str(tmp_path / "merged"), dtype="stored").dtype == short[1]


@pytest.mark.heavy
def test_a_cache_is_written_and_trained_from_in_the_format_that_was_loaded(
    short, processor, pairs_file, tmp_path, capfd
):
    processor(OLD)
    source = ["--model_name_or_path", short[0], "--dataset_name", pairs_file, "--max_length", "64"]
    cache = ["cache", "--method", "iav", *source, "--output_dir", tmp_path / "features"]
    assert main([str(part) for part in cache]) == 0
    manifest = json.loads((tmp_path / "features" / "manifest.json").read_text())
    assert (manifest["dtype"], manifest["backbone"]["dtype"]) == ("fp32", "torch.float32")
    train = ["train", "iav", "--feature_cache", tmp_path / "features", "--output_dir", tmp_path / "out"]
    assert main([str(part) for part in [*train, "--max_steps", "1", "--report_to", "none"]]) == 0
    processor(NEW)  # another machine: told by name, rather than mixed
    assert main([str(part) for part in cache]) == 2
    assert "backbone_dtype: torch.float32 there" in capfd.readouterr().err
