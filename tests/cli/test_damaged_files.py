"""Every file that a command reads, damaged in every way: a command does its work or refuses in one paragraph."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from files import write_adapter, write_backbone, write_classifier, write_guides

from dual_head import RewardHeadConfig
from dual_head.cli import main

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
DAMAGES = {
    "emptied": lambda data, rng: b"",
    "cut to half": lambda data, rng: data[: len(data) // 2],
    "random bytes": lambda data, rng: rng.randbytes(64),
    "a list": lambda data, rng: b"[]",
    "a text": lambda data, rng: b'"a"',
    "an empty object": lambda data, rng: b"{}",
    "nested without end": lambda data, rng: DEEP,
    "another encoding": lambda data, rng: b'{"model_type": "caf\xe9"}',
    "a header of 2^63 bytes": lambda data, rng: (2**63).to_bytes(8, "little") + b"{}",
}
GENERATE = (
    "generate",
    "{guides}",
    "--backbone",
    "{backbone}",
    "--prompt",
    "ask0",
    "--max_new_tokens",
    "1",
    "--no_stream",
)
SWEEP = ("sweep", "{guides}", "--prompt", "ask0", "--alphas", "0,1", "--max_new_tokens", "1")
READ = {  # what reads it, and a file of it
    "guides' weights": (GENERATE, "guides/model.safetensors"),
    "guides' config": (GENERATE, "guides/config.json"),
    "tokenizer": (GENERATE, "guides/tokenizer.json"),
    "tokenizer's config": (GENERATE, "guides/tokenizer_config.json"),
    "backbone's weights": (GENERATE, "backbone/model.safetensors"),
    "backbone's config": (GENERATE, "backbone/config.json"),
    "generation config": (GENERATE, "backbone/generation_config.json"),
    "guides' weights, inspected": (("inspect", "{guides}"), "guides/model.safetensors"),
    "guides' config, inspected": (("inspect", "{guides}"), "guides/config.json"),
    "adapter's config": (("compose", "a={adapter}", "--output_dir", "{out}"), "adapter/adapter_config.json"),
    "adapter's weights": (("compose", "a={adapter}", "--output_dir", "{out}"), "adapter/adapter_model.safetensors"),
    "reward model": ((*SWEEP, "--reward", "{reward}", "--output_dir", "{out}"), "reward/model.safetensors"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder of everything that is read."""
    pytest.importorskip("peft")
    place = tmp_path_factory.mktemp("whole")
    write_backbone(place / "backbone")
    write_guides(place / "guides", place / "backbone", {"g": RewardHeadConfig(num_heads=2, head_dim=4)})
    write_adapter(place / "adapter", place / "backbone")
    write_classifier(place / "reward")
    return place


def outcome(places, tmp_path, capsys, command, name, change) -> tuple[int, str]:
    """Damage a file for as long as the command that reads it runs: its exit code and what it said."""
    file = places / name
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    names = {path.name: str(path) for path in places.iterdir()} | {"out": str(tmp_path / "out")}
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    more = () if command[0] != "compose" else ("--model_name_or_path", names["backbone"])
    capsys.readouterr()
    try:
        code = main([part.format(**names) for part in (*command, *more)])
    finally:
        file.write_bytes(whole)
    return code, capsys.readouterr().err


def require_refusal_or_work(code: int, said: str) -> None:
    assert code in (0, 2), said
    if code == 2:
        (paragraph,) = [line for line in said.splitlines() if line.startswith("dual-head: ")]
        assert len(paragraph) < 900
        assert said.rstrip().endswith(paragraph)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", READ)
def test_a_damaged_file_is_refused_in_one_paragraph(what, damage, places, tmp_path, capsys):
    command, name = READ[what]
    code, said = outcome(places, tmp_path, capsys, command, name, lambda data: DAMAGES[damage](data, random.Random(0)))
    require_refusal_or_work(code, said)
    if "weights" in what or name.endswith("guides/config.json"):
        assert code == 2, said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("what", READ)
def test_a_flipped_bit_ends_in_a_refusal_or_in_work(what, seed, places, tmp_path, capsys):
    rng = random.Random(seed)

    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        start = 8 + int.from_bytes(data[:8], "little") if seed % 2 and name.endswith(".safetensors") else len(data)
        changed[rng.randrange(min(start, len(data)))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    command, name = READ[what]
    require_refusal_or_work(*outcome(places, tmp_path, capsys, command, name, flip))


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, 5, -1, 1e400, float("nan"), 10**30, "x", [], {}, [[1]], True], ids=repr)
def test_no_value_of_another_type_in_a_config_ends_in_a_traceback(value, places, tmp_path, capsys):
    for folder, command in (("guides", GENERATE), ("guides", ("inspect", "{guides}")), ("backbone", GENERATE)):
        config = json.loads((places / folder / "config.json").read_text())
        for key in config:
            change = json.dumps(config | {key: value}).encode()
            code, said = outcome(places, tmp_path, capsys, command, f"{folder}/config.json", lambda _, new=change: new)
            require_refusal_or_work(code, said)


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("backbone's weights", "pytorch_model.bin"),
        ("adapter's weights", "adapter_model.bin"),
        ("reward model", "pytorch_model.bin"),
    ],
)
def test_a_pickle_in_the_place_of_weights_runs_no_code(what, name, places, tmp_path, capsys):
    command, whole = READ[what]
    copy = tmp_path / "copy"
    shutil.copytree(places, copy)
    (copy / whole).unlink()
    torch.save({"x": Code(tmp_path / "ran")}, (copy / whole).with_name(name))
    names = {path.name: str(path) for path in copy.iterdir()} | {"out": str(tmp_path / "out")}
    more = () if command[0] != "compose" else ("--model_name_or_path", names["backbone"])
    assert main([part.format(**names) for part in (*command, *more)]) == 2
    assert "it is a pickle of more than numbers" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
