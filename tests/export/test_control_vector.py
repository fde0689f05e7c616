"""Control vectors: steering vectors as repeng and llama.cpp have them, written, read, and refused."""

from pathlib import Path

import gguf
import numpy
import pytest
import torch
from files import write_backbone, write_guides
from gguf_files import write
from models import HIDDEN, tiny_lm

from dual_head import AlignedModel, DualHeadError, HiddenConfig, LinearDecay, SteeringConfig
from dual_head.cli import main
from dual_head.export.control_vector import (
    attach_control_vector,
    control_vectors,
    read_control_vector,
    write_control_vector,
)

IDS = torch.tensor([[5, 6, 7, 8]])


def steered(**guides) -> AlignedModel:
    model = AlignedModel.from_backbone(tiny_lm("llama"), guides or {"g": SteeringConfig(layers=[2])})
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter)
    return model


def write_gguf(file: Path, tensors: dict[str, numpy.ndarray], architecture: str = "controlvector") -> Path:
    """A file as repeng writes it."""
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    write(writer)
    return file


def direction(seed: int = 0, width: int = HIDDEN) -> numpy.ndarray:
    return numpy.random.default_rng(seed).standard_normal(width).astype("float32")


# ---- the file ------------------------------------------------------------------------------------------------


def test_direction_i_is_added_to_what_decoder_layer_i_gives(tmp_path):
    file = write_gguf(tmp_path / "v.gguf", {"direction.1": direction(1), "direction.0": direction(0)})
    model = AlignedModel.from_backbone(tiny_lm("llama"), {})
    attach_control_vector(model, "v", file)
    lm = tiny_lm("llama").eval()
    for i in (0, 1):
        vector = torch.from_numpy(direction(i))
        lm.model.layers[i].register_forward_hook(lambda _m, _i, output, vector=vector: output - 0.7 * vector)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, alpha=-0.7).logits, lm(IDS).logits, atol=1e-5, rtol=1e-5)


def test_what_is_written_is_alpha_times_the_vectors_under_the_names_of_llama_cpp(tmp_path):
    model = steered()
    file = write_control_vector(model, tmp_path, alpha=-1.5)
    reader = gguf.GGUFReader(str(file))
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 1
    ((name, values),) = [(x.name, x.data) for x in reader.tensors]
    assert name == "direction.1"  # its second decoder layer
    assert values.dtype == numpy.float32
    numpy.testing.assert_allclose(values, -1.5 * model.guide("g").vectors[0].numpy(), rtol=1e-6)
    assert {i: v.tolist() for i, v in read_control_vector(file).items()} == {2: values.tolist()}


def test_a_written_vector_at_1_is_the_guide_at_its_strength(tmp_path):
    model = steered()
    again = AlignedModel.from_backbone(tiny_lm("llama"), {})
    attach_control_vector(again, "v", write_control_vector(model, tmp_path, alpha=0.6))
    torch.testing.assert_close(again(IDS, alpha=1.0).logits, model(IDS, alpha=0.6).logits)


# ---- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guides", "alpha", "message"),
    [
        ({"g": HiddenConfig()}, 1.0, "'g' is no steering vector"),
        ({"g": SteeringConfig(tokens="reply")}, 1.0, "tokens=reply"),
        ({"g": SteeringConfig()}, 0.0, "not of none"),
        ({"a": SteeringConfig(), "b": SteeringConfig()}, 1.0, "not of a, b"),
        ({"g": SteeringConfig()}, LinearDecay(), "follows a schedule"),
    ],
)
def test_what_no_control_vector_can_do_is_refused(guides, alpha, message):
    with pytest.raises(DualHeadError, match=message):
        control_vectors(steered(**guides), alpha=alpha)


def test_the_first_layer_which_llama_cpp_leaves_out_is_not_written(tmp_path):
    with pytest.raises(DualHeadError, match="without layer 1"):
        write_control_vector(steered(g=SteeringConfig(layers=[1])), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "architecture", "message"),
    [
        ({"direction.1": direction(width=16)}, "controlvector", "width 16, and the backbone has 2 layers of width 32"),
        ({"direction.2": direction()}, "controlvector", "layers to 3 of width 32"),
        ({"blk.0.attn_q.weight": direction()}, "llama", "is no control vector but a GGUF of 'llama'"),
        ({"direction.1": direction(), "mean": direction()}, "controlvector", "is no control vector"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tensors, architecture, message, tmp_path):
    file = write_gguf(tmp_path / "v.gguf", tensors, architecture)
    model = AlignedModel.from_backbone(tiny_lm("llama"), {})
    with pytest.raises(DualHeadError, match=message):
        attach_control_vector(model, "v", file)
    assert list(model.guides) == []


def test_a_file_that_is_cut_off_or_not_there_is_refused(tmp_path):
    with pytest.raises(DualHeadError, match="There is no file"):
        read_control_vector(tmp_path / "none.gguf")
    file = write_gguf(tmp_path / "v.gguf", {"direction.1": direction()})
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DualHeadError, match="cannot be read as a GGUF"):
        read_control_vector(file)


# ---- the commands --------------------------------------------------------------------------------------------


def test_a_file_goes_into_guides_and_out_again(tmp_path, capsys):
    backbone = write_backbone(tmp_path / "backbone")
    source = write_gguf(tmp_path / "v.gguf", {"direction.1": direction()})
    place = ["--model_name_or_path", str(backbone), "--output_dir", str(tmp_path / "guides")]
    assert main(["compose", f"calm={source}", *place]) == 0
    out = tmp_path / "out"
    command = ["merge", str(tmp_path / "guides"), "--control_vector", "--alpha", "calm=2", "--output_dir", str(out)]
    assert main(command) == 0
    assert f"--control-vector {out / 'control_vector.gguf'}" in capsys.readouterr().out
    torch.testing.assert_close(read_control_vector(out / "control_vector.gguf")[2], 2 * torch.from_numpy(direction()))
    before = (out / "control_vector.gguf").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "control_vector.gguf").stat().st_mtime_ns == before  # it was there already
    assert main([*command[:4], "calm=1", *command[5:]]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*command, "--lora"]) == 2
    assert "Give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--lora"]])
def test_another_form_names_the_one_that_holds_vectors(form, tmp_path, capsys):
    write_guides(tmp_path / "guides", write_backbone(tmp_path / "backbone"), {"g": SteeringConfig()})
    command = ["merge", str(tmp_path / "guides"), *form, "--alpha", "1", "--output_dir", str(tmp_path / "out")]
    assert main(command) == 2
    assert "merge --control_vector" in capsys.readouterr().err


def test_a_guide_of_another_kind_is_named(tmp_path, capsys):
    write_guides(tmp_path / "guides", write_backbone(tmp_path / "backbone"), {"g": HiddenConfig()})
    command = ["merge", str(tmp_path / "guides"), "--control_vector", "--alpha", "1"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert "'g' is no steering vector" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
