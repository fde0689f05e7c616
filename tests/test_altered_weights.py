"""A bit that flips in weights which the library wrote is refused at load; folders without checksums load as before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from classifiers import write_dhrd
from files import flip_a_bit, forget_checksums, write_backbone, write_guides
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_head import AlignedModel, DualHeadError
from dual_head.backbone.load import load_backbone
from dual_head.classify.export.plain import export as export_classifier
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.evaluate.rewards import load_reward
from dual_head.export.folder import export
from dual_head.files.places import CHECKSUMS, checksums, require_unaltered, weights_in
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.reward_model import RewardModelConfig

WEIGHTS = "model.safetensors"
REFUSED = r"model\.safetensors' is not what was written: .*SHA-256.*If it was changed on purpose, remove 'checksums'"


def merged(folder: Path) -> Path:
    guides = write_guides(folder / "guides", write_backbone(folder / "backbone"), {"g": HiddenConfig(rank=2)})
    export(AlignedModel.from_pretrained(guides), AutoTokenizer.from_pretrained(guides), folder / "merged")
    return folder / "merged"


def exported(folder: Path, **options) -> Path:
    """A linear classifier as a plain one, beside itself."""
    place = write_dhrd(folder, head="linear")
    model = DualHeadReasoningModel.from_pretrained(place)
    export_classifier(model, AutoTokenizer.from_pretrained(place), folder / "exported", **options)
    return folder / "exported"


def guides_of(config) -> Callable[[Path], Path]:
    return lambda folder: write_guides(folder / "guides", write_backbone(folder / "backbone"), {"g": config})


WRITTEN = {  # what writes a folder, what loads it, and the record that holds its checksums
    "guide": (guides_of(HiddenConfig(rank=2)), AlignedModel.from_pretrained, "config.json"),
    "LoRA of a second model": (guides_of(LanguageModelConfig(rank=2)), AlignedModel.from_pretrained, "config.json"),
    "reward model": (guides_of(RewardModelConfig(tune="full")), lambda f: load_reward(str(f)), "config.json"),
    "classifier": (write_dhrd, DualHeadReasoningModel.from_pretrained, "config.json"),
    "classifier trained whole": (
        lambda folder: write_dhrd(folder, tune="full"),
        DualHeadReasoningModel.from_pretrained,
        "config.json",
    ),
    "merged model": (merged, lambda f: load_backbone(str(f)), "merge.json"),
    "exported classifier": (exported, lambda f: exported(f.parent), "export.json"),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_one_bit_is_refused_unless_the_checksums_are_removed(what, tmp_path):
    if "LoRA" in what or "classifier" in what:
        pytest.importorskip("peft")
    write, load, record = WRITTEN[what]
    folder = write(tmp_path)
    load(folder)
    flip_a_bit(folder / WEIGHTS)
    with pytest.raises(DualHeadError, match=REFUSED):
        load(folder)
    flip_a_bit(folder / WEIGHTS)
    forget_checksums(folder, record)  # as every folder was before there were checksums
    load(folder)


def test_weights_that_were_changed_on_purpose_load_without_the_checksums(tmp_path):
    folder = guides_of(HiddenConfig(rank=2))(tmp_path)
    flip_a_bit(folder / WEIGHTS)
    forget_checksums(folder)
    AlignedModel.from_pretrained(folder)


def test_a_model_saved_from_python_has_the_checksums_of_what_was_saved(tmp_path):
    folder = guides_of(HiddenConfig(rank=2))(tmp_path)
    model = AlignedModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.guides.parameters()).add_(1)
    model.save_pretrained(tmp_path / "again")
    recorded = [json.loads((place / "config.json").read_text())[CHECKSUMS] for place in (folder, tmp_path / "again")]
    assert recorded == [checksums([place / WEIGHTS]) for place in (folder, tmp_path / "again")]
    assert recorded[0] != recorded[1]
    AlignedModel.from_pretrained(tmp_path / "again")


def test_a_merged_model_trained_on_by_transformers_is_a_model_of_its_own(tmp_path):
    lm = AutoModelForCausalLM.from_pretrained(merged(tmp_path))
    with torch.no_grad():
        lm.get_output_embeddings().weight.add_(1)
    lm.save_pretrained(tmp_path / "tuned")
    load_backbone(str(tmp_path / "tuned"))


def test_an_export_of_a_classifier_from_before_checksums_is_known_again(tmp_path):
    pytest.importorskip("peft")
    folder = exported(tmp_path)
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    forget_checksums(tmp_path / "classifier")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    export_classifier(DualHeadReasoningModel.from_pretrained(tmp_path / "classifier"), tokenizer, folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_every_shard_is_checked_and_one_that_is_gone_is_left_to_the_reader(tmp_path):
    for i in (1, 2):
        (tmp_path / f"model-0000{i}-of-00002.safetensors").write_bytes(bytes([i]) * 100)
    (tmp_path / "merge.json").write_text(json.dumps({CHECKSUMS: checksums(weights_in(tmp_path))}))
    require_unaltered(tmp_path)
    flip_a_bit(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(DualHeadError, match=r"model-00002-of-00002.* remove 'checksums' from '.*merge\.json'"):
        require_unaltered(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    require_unaltered(tmp_path)


@pytest.mark.parametrize("value", [5, [1], ["merge.json"], {"merge.json": 5}, {"merge.json": {"bytes": 1}}])
def test_checksums_of_another_type_are_refused_by_their_record(tmp_path, value):
    (tmp_path / "merge.json").write_text(json.dumps({CHECKSUMS: value}))
    with pytest.raises(DualHeadError, match=r"merge\.json'"):
        require_unaltered(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "gone", ""])
def test_only_files_beside_the_record_are_read(tmp_path, name):
    (tmp_path / "outside").write_text("x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "merge.json").write_text(json.dumps({CHECKSUMS: {name: {"bytes": 1, "sha256": ""}}}))
    require_unaltered(tmp_path / "model")
