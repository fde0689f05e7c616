"""`dual-head cache`: killed, repeated, extended or divided, it leaves the same bytes; and it says when they change."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from files import WORDS, word_tokenizer, write_backbone, write_pairs

from dual_head.cli import main
from dual_head.methods import method
from dual_head.train.feature_cache import run as cache_run
from dual_head.train.feature_cache.run import cache_features
from dual_head.train.feature_cache.store import write_manifest
from dual_head.train.options import CacheOptions

SRC = Path(__file__).parents[2] / "src"
# Kills its own process, as the machine would, when the third shard is written and not yet in its place.
KILLED = """
import os, signal, sys
from dual_head.cli import main
from dual_head.train.feature_cache import store
file_digest, seen = store.file_digest, []
def digest_or_die(file):
    seen.append(file)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return file_digest(file)
store.file_digest = digest_or_die
main(sys.argv[1:])
"""


def arguments(source: Path, output: Path, **options) -> list[str]:
    given = {
        "model_name_or_path": source / "backbone",
        "dataset_name": source / "pairs.jsonl",
        "output_dir": output,
        "held_out": 0.2,
        "pairs_per_shard": 8,
        **options,
    }
    return ["cache", *(part for key, value in given.items() for part in (f"--{key}", str(value)))]


def cache(source: Path, output: Path, *more: str, **options) -> Path:
    assert main([*arguments(source, output, **options), *more]) == 0
    return output


def refused(capsys, arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*-?????.safetensors")}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*-?????.safetensors")}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A backbone, forty pairs, and the first thirty of them."""
    folder = tmp_path_factory.mktemp("source")
    write_backbone(folder / "backbone", spread=0.2)
    write_pairs(folder / "pairs.jsonl", 40)
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "fewer.jsonl").write_text("".join(lines[:30]))
    (folder / "turned.jsonl").write_text("".join(lines[::-1]))
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A finished cache that nothing disturbed."""
    return cache(source, tmp_path_factory.mktemp("whole") / "cache")


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it to break."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


# ---- what is written ----------------------------------------------------------------------------------------


def test_what_a_cache_holds_and_takes_is_said_before_it_is_written(source, tmp_path, capsys):
    cache(source, tmp_path / "cache", dtype="bf16")
    said = capsys.readouterr().out
    assert "40 pairs, 533 hidden states of every token, prompts once; hidden in bf16" in said
    assert "68 bytes each" in said
    assert "free" in said
    assert "for a single epoch train without --feature_cache" in said
    cache(source, tmp_path / "responses", method="iav", dtype="int8")
    said = capsys.readouterr().out
    assert "hidden states that predict response tokens; hidden in int8\n40 bytes each" in said


def test_the_folder_holds_all_that_training_needs_and_says_whose_it_is(whole, source):
    said = manifest(whole)
    assert said["complete"]
    assert said["options"]["model_name_or_path"] == str(source / "backbone")
    assert said["backbone"]["fingerprint"]["architecture"] == "LlamaForCausalLM"
    assert [part["pairs"] for part in said["parts"].values()] == [35, 5]
    assert [shard["pairs"] for shard in said["parts"]["train"]["shards"]] == [8, 8, 8, 8, 3]
    for name in ("config.json", "head.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (whole / name).is_file()
    assert not list(whole.glob(".*"))
    assert sum(file.stat().st_size for file in whole.glob("*.safetensors")) < 533 * 140 + 10_000  # no decoder


def test_a_cache_that_does_not_fit_is_refused_before_a_byte_is_written(source, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(10**6, 10**6 - 70_000, 70_000))
    said = refused(capsys, arguments(source, tmp_path / "cache"))
    assert "77.1 kB do not fit into the 70.0 kB" in said
    assert "--dtype int8" in said
    assert not list((tmp_path / "cache").iterdir())
    cache(source, tmp_path / "cache", dtype="int8")


# ---- the same bytes -----------------------------------------------------------------------------------------


def test_a_killed_command_loses_one_shard_and_the_same_again_finishes_with_the_same_bytes(source, whole, tmp_path):
    command = [sys.executable, "-c", KILLED, *arguments(source, tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert shards(tmp_path).keys() == {"features-00000.safetensors", "features-00001.safetensors"}
    assert [file.name for file in tmp_path.glob(".*/*")] == ["features-00002.safetensors"]
    assert not manifest(tmp_path)["complete"]
    before = times(tmp_path)
    cache(source, tmp_path)
    assert times(tmp_path).items() >= before.items()
    assert shards(tmp_path) == shards(whole)
    assert manifest(tmp_path) == manifest(whole)
    assert not list(tmp_path.glob(".*"))


def test_repeating_a_finished_command_writes_no_shard(copied, source):
    before, said = times(copied), manifest(copied)
    cache(source, copied)
    assert times(copied) == before
    assert manifest(copied) == said


def test_more_pairs_are_added_without_rewriting_whole_shards(source, whole, tmp_path):
    cache(source, tmp_path, dataset_name=source / "fewer.jsonl")
    first, few = times(tmp_path), manifest(tmp_path)["parts"]["train"]
    assert [shard["pairs"] for shard in few["shards"]] == [8, 8, 8, 3]
    cache(source, tmp_path)
    after = times(tmp_path)
    kept = {name for name in first if first[name] == after[name]}
    assert kept == {f"features-0000{i}.safetensors" for i in range(3)}
    assert shards(tmp_path) == shards(whole)
    assert manifest(tmp_path)["parts"] == manifest(whole)["parts"]


def test_a_larger_max_pairs_adds_too(source, whole, tmp_path):
    cache(source, tmp_path, max_pairs=20)
    cache(source, tmp_path, max_pairs=40)
    assert shards(tmp_path) == shards(whole)


def test_a_longer_data_set_with_another_pair_in_the_last_shard_is_refused(source, tmp_path, capsys):
    cache(source, tmp_path, dataset_name=source / "fewer.jsonl")
    lines = (source / "pairs.jsonl").read_text().splitlines(keepends=True)
    (source / "mixed.jsonl").write_text("".join(lines[:28] + lines[:27:-1]))
    said = refused(capsys, arguments(source, tmp_path, dataset_name=source / "mixed.jsonl"))
    assert "(data: train pairs from 25 on)" in said


def test_two_processes_divide_the_shards_and_write_what_one_writes(source, whole, tmp_path, monkeypatch):
    # Threads for processes: only one runs at a time, as transformers and datasets are not made for two at once.
    turn, barrier, said, failed, publish = threading.Lock(), threading.Barrier(2), [], [], cache_run.publish

    class Process:
        """One of two, in a thread of its own."""

        num_processes, device = 2, torch.device("cpu")

        def __init__(self, cpu):
            self.process_index = int(threading.current_thread().name)
            self.is_main_process = self.process_index == 0

        def wait_for_everyone(self):
            turn.release()
            try:
                barrier.wait(timeout=60)
            finally:
                turn.acquire()

    def publish_and_say(folder, name, *args, **options):
        said.append((int(threading.current_thread().name), name))
        return publish(folder, name, *args, **options)

    def run():
        with turn:
            try:
                cache_features(method("dual_head"), options)
            except Exception as error:
                failed.append(error)
                barrier.abort()

    monkeypatch.setattr(cache_run, "PartialState", Process)
    monkeypatch.setattr(cache_run, "publish", publish_and_say)
    options = CacheOptions(str(source / "backbone"), str(source / "pairs.jsonl"), output_dir=str(tmp_path))
    options.held_out, options.pairs_per_shard = 0.2, 8
    threads = [threading.Thread(target=run, name=str(i)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    names = [f"features-0000{i}" for i in range(5)] + ["held_out-00000"]
    assert sorted(said) == [(0, name) for name in names[::2]] + [(1, name) for name in names[1::2]]
    assert shards(tmp_path) == shards(whole)
    assert manifest(tmp_path) == manifest(whole)


@pytest.mark.slow
def test_two_processes_of_accelerate_write_what_one_writes(source, whole, tmp_path):
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    command = [*launch, "-m", "dual_head", *arguments(source, tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Features written") == 1
    assert shards(tmp_path) == shards(whole)
    assert manifest(tmp_path) == manifest(whole)


# ---- refused ------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_and_its_shard_named(copied, source, capsys):
    assert main(["cache", "--verify", str(copied)]) == 0
    assert "is whole: 10 files" in capsys.readouterr().out
    shard = copied / "features-00002.safetensors"
    bytes_ = bytearray(shard.read_bytes())
    bytes_[-1] ^= 1
    shard.write_bytes(bytes_)
    said = refused(capsys, ["cache", "--verify", "--output_dir", str(copied)])
    assert "features-00002.safetensors' is not what was written" in said
    shard.unlink()
    assert "features-00002.safetensors' is missing" in refused(capsys, ["cache", "--verify", str(copied)])
    cache(source, copied)
    assert main(["cache", "--verify", str(copied)]) == 0


@pytest.mark.parametrize("end", ["safetensors", "json"])
def test_the_same_command_writes_a_shard_again_whose_bits_have_changed(end, copied, source, whole, capsys):
    file = copied / f"features-00002.{end}"
    file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
    cache(source, copied)
    text = capsys.readouterr().out
    assert "5 of 6 shards are there already" in text
    assert ("'features-00002.safetensors' is not what was written" in text) == (end == "safetensors")
    assert shards(copied) == shards(whole)
    assert main(["cache", "--verify", str(copied)]) == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_beside_the_shards_that_has_changed_is_refused_by_its_name(name, copied, source, tmp_path, capsys):
    (copied / name).write_bytes((copied / name).read_bytes()[:-9])
    expected = f"{name}' is not what was written. Delete it and run the same 'dual-head cache' command again"
    training = ["train", "dual_head", "--feature_cache", str(copied), "--output_dir", str(tmp_path / "out")]
    assert expected in refused(capsys, training)
    assert expected in refused(capsys, ["cache", "--verify", str(copied)])
    cache(source, copied)
    assert main(["cache", "--verify", str(copied)]) == 0


def test_verifying_what_is_no_cache_or_not_finished_fails(copied, tmp_path, capsys):
    assert "is not a feature cache" in refused(capsys, ["cache", "--verify", str(tmp_path / "nothing")])
    assert "--verify FOLDER" in refused(capsys, ["cache", "--verify"])
    write_manifest(copied, {**manifest(copied), "complete": False})
    assert "not finished" in refused(capsys, ["cache", "--verify", str(copied)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "int8"}, "dtype: 'fp32' there, 'int8' now"),
        ({"method": "iav"}, "positions: 'all' there, 'response' now"),
        ({"pairs_per_shard": 16}, "pairs_per_shard: 8 there, 16 now"),
        ({"held_out": 0.3}, "held_out: 0.2 there, 0.3 now"),
        ({"max_length": 32}, "max_length: 1024 there, 32 now"),
        ({"backbone_dtype": "bfloat16", "dtype": "fp32"}, "backbone_dtype: torch.float32 there, torch.bfloat16 now"),
        ({"max_pairs": 30}, "more or other pairs than the data now have (data: train pairs from 25 on)"),
        ({"dataset_name": "turned.jsonl"}, "more or other pairs than the data now have (data: train pairs from 1 on)"),
        ({"model_name_or_path": "other"}, "backbone: the same sizes but other weights"),
        ({"tokenizer_name": "words"}, "tokenizer: "),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name_and_left_alone(options, named, copied, source, capsys):
    write_backbone(source / "other", spread=0.2, seed=8)
    word_tokenizer([*WORDS[:4], *WORDS[5:], WORDS[4]]).save_pretrained(source / "words")
    given = {name: source / str(value) if (source / str(value)).exists() else value for name, value in options.items()}
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    said = refused(capsys, arguments(source, copied, **given))
    assert named in said
    assert "--restart" in said
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before


def test_restart_writes_anew_and_deletes_only_what_is_the_caches(copied, source, whole, tmp_path):
    (copied / "notes.txt").write_text("mine")
    cache(source, copied, "--restart", held_out=0.3, pairs_per_shard=16)
    assert (copied / "notes.txt").read_text() == "mine"
    assert not (copied / "features-00004.safetensors").exists()
    assert main(["cache", "--verify", str(copied)]) == 0
    cache(source, copied, "--restart")
    assert shards(copied) == shards(whole)


def test_a_command_without_a_backbone_data_or_a_place_says_which(source, capsys):
    given = arguments(source, Path("out"))
    for flag in ("--model_name_or_path", "--dataset_name", "--output_dir"):
        at = given.index(flag)
        assert f"with {flag}." in refused(capsys, given[:at] + given[at + 2 :])
