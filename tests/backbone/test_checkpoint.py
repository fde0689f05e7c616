"""Files are written whole or not at all, and read with the remedy in every error."""

import errno
import json
from pathlib import Path

import pytest
import torch
from models import steered_lm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dual_head import DualHeadError, DualHeadModel
from dual_head.backbone.checkpoint import find_file, load_strictly, read_weights, write_weights
from dual_head.files.places import NAMES, READY

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


# ---- weights -----------------------------------------------------------------------------------------------


def test_weights_round_trip_with_their_bits_and_dtypes(tmp_path):
    write_weights(WEIGHTS, tmp_path)
    read = read_weights(str(tmp_path))
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) and read[name].dtype == WEIGHTS[name].dtype for name in WEIGHTS)


def test_a_transposed_weight_is_written_as_it_reads(tmp_path):
    write_weights({"a": WEIGHTS["a"].T}, tmp_path)
    assert torch.equal(read_weights(str(tmp_path))["a"], WEIGHTS["a"].T)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:4],
        lambda whole: b"",
        lambda whole: b"\xff" * len(whole),
    ],
    ids=["half", "a byte short", "header", "empty", "garbage"],
)
def test_a_spoilt_file_is_refused_with_the_remedy(tmp_path, spoil):
    write_weights(WEIGHTS, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DualHeadError, match=r"is not a whole safetensors file.*copy it again, or train again"):
        read_weights(str(tmp_path))


def test_a_spoilt_config_is_refused_with_the_remedy(tmp_path):
    model = steered_lm()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(DualHeadError, match=r"config\.json"):
        DualHeadModel.from_pretrained(str(tmp_path), backbone=model.backbone.lm)


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("Error: No space left on device (os error 28)")],
)
def test_a_disk_that_fills_up_while_saving_keeps_the_last_checkpoint(tmp_path, monkeypatch, failure):
    model = steered_lm()
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fill_up(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise failure

    monkeypatch.setattr("safetensors.torch.save_file", fill_up)
    with pytest.raises(DualHeadError, match=r"No space left.*free some space"):
        model.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_without_guides_is_refused(tmp_path):
    with pytest.raises(DualHeadError, match=r"holds no config.json.*Train one with 'dual-head train'"):
        find_file(str(tmp_path), "config.json")


def test_a_mistyped_folder_is_refused_with_the_nearest_that_holds_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("helpful", "helpfuls"):
        Path("out", name).mkdir(parents=True)
    Path("out", "helpful", "config.json").write_text("{}")
    for source in ("out/helpfull", str(tmp_path / "out" / "helpfull")):
        with pytest.raises(DualHeadError, match=r"No checkpoint of guides.*Did you mean '.*out/helpful'\? Give"):
            find_file(source, "config.json")


def test_a_place_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DualHeadError, match=r"No checkpoint of guides at '.*gone'.*Give the output folder"):
        find_file(str(tmp_path / "gone"), "config.json")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": torch.zeros(2, 3)}, r"1 tensors differ, the first is 'bias' \(expected \(2,\), found none\)"),
        ({"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, r"'weight' \(expected \(2, 3\), found \(3, 3\)\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)}, r"'x' \(expected none"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_first_that_does_not(state, said):
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(DualHeadError, match=said + ".*Restore the matching pair of files"):
        load_strictly(module.state_dict(), state, "here")
    assert torch.equal(module.weight, before)


def test_weights_that_fit_are_loaded():
    module = nn.Linear(3, 2)
    load_strictly(module.state_dict(), {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, "here")
    assert module(torch.ones(3)).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guides_of_nan_or_infinity_are_refused_by_the_tensor_that_holds_it(tmp_path, value, dtype):
    spoilt = torch.ones(3, 4, dtype=dtype)
    spoilt[1, 2] = value
    write_weights({"g.a": torch.ones(2), "g.b": spoilt, "g.ids": torch.arange(3), "g.none": torch.ones(0)}, tmp_path)
    with pytest.raises(DualHeadError, match=r"hold NaN or infinity, in 'g\.b' first"):
        read_weights(str(tmp_path))
    spoilt[1, 2] = 3e38
    write_weights({"g.b": spoilt}, tmp_path)
    assert read_weights(str(tmp_path))["g.b"].equal(spoilt)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alpha": [1]}, "alpha must be"),
        ({"alpha": {"dual_head": "x"}}, "alpha must be"),
        ({"alpha": {"dual_head": float("nan")}}, "alpha must be"),
        ({"fusion": 5}, "fusion must be str"),
        ({"guides": [1]}, "guides must be"),
        ({"guides": {"g": {"kind": ["a"], "config": 5, "cache_layers": "a", "shape": 7}}}, "kind of the guide 'g'"),
        ({"guides": {"g": {"kind": "linear", "config": {}, "cache_layers": 0, "shape": {}}}}, "lacks 'hidden_size'"),
        ({"backbone_name_or_path": ["a"]}, "backbone_name_or_path must be"),
        ({"backbone_fingerprint": [1]}, "backbone_fingerprint must be"),
        ({"backbone_fingerprint": {"vocab_size": 3}}, "lacks 'architecture'"),
        ({"backbone_config": {"model_type": "nothing"}}, "nothing"),
    ],
)
def test_a_config_of_other_types_is_refused_by_the_value_that_is_wrong(tmp_path, changed, said):
    model = steered_lm()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(DualHeadError, match=said):
        DualHeadModel.from_pretrained(str(tmp_path), backbone=model.backbone.lm)


def test_a_reader_puts_in_place_what_a_killed_writer_left_ready(tmp_path):
    """Old weights beside a new config, or new weights beside an old one, would be refused as altered."""
    for seed, place in enumerate(("old", "new")):
        steered_lm(seed=seed).save_pretrained(tmp_path / place)
    ready = tmp_path / "old" / f"{READY}0"
    (tmp_path / "new").rename(ready)
    (ready / NAMES).write_text(json.dumps({"names": ["model.safetensors", "config.json"], "replaces": []}))
    new = load_file(ready / "model.safetensors")
    (ready / "model.safetensors").replace(tmp_path / "old" / "model.safetensors")  # and here it was killed
    read = read_weights(str(tmp_path / "old"))
    assert all(torch.equal(read[name], new[name]) for name in new)
    assert not ready.exists()
