"""Every command that writes, at a bad moment: a signal, a full or a read-only place, a second process beside it."""

import errno
import os
import random
import signal
from itertools import cycle
from pathlib import Path

import pytest
from robustness.forks import Running, run, start
from robustness.writers import (
    READERS,
    WRITERS,
    argv_of,
    every_command,
    failing,
    litter,
    parser_of,
    place_of,
    signalled,
    write_inputs,
)

from dual_head.cli import main
from dual_head.files.places import exclusive

# Those that take a second or two; the others write by the same functions, and are in the slow trials.
SHORT = ("cache", "generate", "compose", "merge", "classify export", "classify predict", "classify lint")
HEAVY = ("demo",)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_every_command_that_writes_is_in_these_tests(inputs, tmp_path):
    assert every_command() == WRITERS.keys() | READERS.keys()
    for name in READERS:
        flags = parser_of(argv_of(name, inputs, tmp_path))._option_string_actions
        assert not [flag for flag in flags if flag.startswith("--output")], name


# ---- two at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_what_another_process_writes_is_refused_and_left_alone(name, inputs, tmp_path, capsys):
    argv = argv_of(name, inputs, tmp_path / "out")
    with exclusive(place_of(argv)):
        assert main(argv) == 2
    assert "Another process is writing to" in capsys.readouterr().err
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def both(name: str, inputs: dict[str, str], out: Path) -> tuple[list[Running], list[str]]:
    argv = argv_of(name, inputs, out)
    return [start(argv), start(argv)], argv


@pytest.mark.parametrize("name", ["merge", "classify predict"])
def test_of_two_processes_at_once_one_writes(name, inputs, tmp_path):
    running, argv = both(name, inputs, tmp_path / "out")
    kinds = sorted(one.wait().kind for one in running)
    assert kinds in (["ok", "refused"], ["ok", "ok"]), "the second may begin when the first has ended"
    assert run(argv).kind == "ok"
    assert litter(tmp_path / "out") == []
    if name == "classify predict":
        assert len(place_of(argv).read_text().splitlines()) == 16


# ---- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT)
def test_sigterm_while_it_writes_leaves_nothing_half_written(name, inputs, tmp_path):
    out = tmp_path / "out"
    ended = run(argv_of(name, inputs, out), before=signalled(out, signal.SIGTERM))
    assert (ended.kind, ended.err.splitlines()[-1]) == ("signal 15", "dual-head: terminated")
    assert litter(out) == []
    assert run(argv_of(name, inputs, out)).kind == "ok"


def test_an_interrupt_while_a_shard_is_written_leaves_no_part_of_it(inputs, tmp_path):
    """Shards are written by a library of Rust, in which no file is seen to be opened."""
    out = tmp_path / "out"
    interrupt = """
import dual_head.train.feature_cache.store as store
def save_file(tensors, file, metadata):
    file.write_bytes(b"half")
    raise KeyboardInterrupt
store.save_file = save_file
"""
    assert run(argv_of("cache", inputs, out), before=interrupt).kind == "rc=130"
    assert litter(out) == []


def test_a_training_run_that_is_terminated_goes_on(inputs, tmp_path):
    out = tmp_path / "out"
    argv = [*argv_of("train", inputs, out), "--max_steps", "2", "--save_steps", "1"]
    assert run(argv, before=signalled(out / "checkpoint-2", signal.SIGTERM)).kind == "signal 15"
    assert litter(out) == []
    again = run(argv)
    assert (again.kind, "Resuming from" in again.out) == ("ok", True)


# ---- full and read-only places -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), list(zip(SHORT, cycle([errno.ENOSPC, errno.EACCES, errno.EROFS]))))
def test_a_place_that_takes_nothing_is_refused_in_a_paragraph(name, number, inputs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ended = run(argv_of(name, inputs, out), before=failing(out, number))
    assert ended.kind == "refused"
    assert os.strerror(number) in ended.err
    assert list(out.iterdir()) == []


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize("name", ["compose", "merge", "classify export"])
def test_a_disk_that_is_full_while_the_tokenizer_is_saved_is_told(name, inputs, tmp_path):
    """Weights are written first and tokenizers by a library of Rust, whose exception is of no kind of its own."""
    out, whole = tmp_path / "out", tmp_path / "whole" / "out"
    assert run(argv_of(name, inputs, whole)).kind == "ok"
    size = (whole / "tokenizer.json").stat().st_size
    assert size > 1000
    # Weights alone may be larger: they go to a device that takes all.
    ended = run(argv_of(name, inputs, out), before=f"{_WEIGHTS}\n{LIMIT.format(size - 1)}")
    assert ended.kind == "refused"
    assert os.strerror(errno.EFBIG) in ended.err
    assert list(out.iterdir()) == []


_WEIGHTS = """
import safetensors.torch, transformers.modeling_utils
from pathlib import Path
def save_file(tensors, file, metadata=None):
    Path(file).touch()
safetensors.torch.save_file = transformers.modeling_utils.safe_save_file = save_file
"""


def test_a_full_device_ends_a_generation_in_words(inputs):
    argv = argv_of("generate", inputs, Path("/dev"))
    ended = run([*argv[:-1], "/dev/full"])
    assert (ended.kind, "No space left on device" in ended.err) == ("refused", True)


# ---- all of them, at random moments ------------------------------------------------------------------------


def finished(name: str) -> str:
    """How a command ends that nothing stands in the way of."""
    return "refused" if name == "classify rationales" else "ok"  # there is no teacher


@pytest.mark.slow
def test_signals_at_random_moments_cost_no_work_and_leave_no_litter(inputs, tmp_path):
    """Prints totals and the seed."""
    seed = random.SystemRandom().randrange(10**6)
    rng, ends = random.Random(seed), {}
    for i, name in enumerate([name for name in WRITERS if name not in HEAVY] * 4):
        out = tmp_path / str(i) / "out"
        number = rng.choice([signal.SIGTERM, signal.SIGINT])
        ended = run(argv_of(name, inputs, out), before=signalled(out, number, rng.randint(1, 12)))
        kind = ended.kind
        ends[kind] = ends.get(kind, 0) + 1
        assert kind in ("ok", "signal 15", "rc=130", finished(name)), (seed, name, ended)
        assert litter(out) == [], (seed, name)
        again = run(argv_of(name, inputs, out))
        assert again.kind == finished(name), (seed, name, again)
    print(f"signals: {ends}, seed {seed}")


@pytest.mark.slow
def test_disks_of_every_size_are_told_of_in_a_paragraph(inputs, tmp_path):
    """Prints totals and the seed."""
    seed = random.SystemRandom().randrange(10**6)
    rng, ends = random.Random(seed), {}
    for i, name in enumerate([name for name in WRITERS if name not in HEAVY] * 4):
        out = tmp_path / str(i) / "out"
        ended = run(argv_of(name, inputs, out), before=LIMIT.format(int(10 ** rng.uniform(3.6, 5.5))))
        ends[ended.kind] = ends.get(ended.kind, 0) + 1
        assert ended.kind in ("ok", "refused"), (seed, name, ended)
        assert litter(out) == [], (seed, name)
        again = run(argv_of(name, inputs, out))
        assert again.kind == finished(name), (seed, name, again)
    print(f"full disks: {ends}, seed {seed}")
