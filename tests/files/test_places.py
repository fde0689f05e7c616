"""A set of files is written whole or not at all, whatever is killed, and by one process at a time."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dual_head.errors import DualHeadError
from dual_head.files.places import (
    NAMES,
    READY,
    WRITING,
    atomic_folder,
    exclusive,
    require_empty,
    require_place,
    settle,
    system_failure,
)

FILES = ("config.json", "model.safetensors", "tokenizer.json")

# Kills itself before the file operation of the given number below the folder; 0 never does.
WRITER = """
import os, signal, sys
from pathlib import Path
from dual_head.files.places import atomic_folder, exclusive
import filelock
folder, text, at, replaces = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4].split()
seen = 0
def audit(event, arguments):
    global seen
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open") and str(folder) in str(arguments[0]):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
with atomic_folder(folder, replaces=replaces) as staging:
    for name in sys.argv[5:]:
        (staging / name).write_text(text)
print(seen)
"""


def run(folder: Path, text: str, *names: str, at: int = 0, replaces: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WRITER, str(folder), text, str(at), replaces, *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if not file.name.startswith((WRITING, READY))}


def write(folder: Path, text: str, names=FILES, *, failure: BaseException | None = None, replaces=()) -> None:
    with atomic_folder(folder, replaces=replaces) as staging:
        for name in names:
            (staging / name).write_text(text)
        if failure:
            raise failure


def test_files_replace_those_of_the_same_name_and_others_stay(tmp_path):
    write(tmp_path, "old", ["config.json", "notes.txt"])
    write(tmp_path, "new", ["config.json"])
    assert texts(tmp_path) == {"config.json": "new", "notes.txt": "old"}
    write(tmp_path, "newer", ["config.json"], replaces=["config.json", "*.txt"])
    assert texts(tmp_path) == {"config.json": "newer"}


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), KeyboardInterrupt(), DualHeadError("told")])
def test_a_block_that_fails_changes_nothing(tmp_path, failure):
    write(tmp_path, "old")
    with pytest.raises(type(failure)):
        write(tmp_path, "new", failure=failure)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(FILES, "old")


def test_a_full_disk_changes_nothing_and_says_what_to_do(tmp_path):
    write(tmp_path, "old")
    with pytest.raises(DualHeadError, match=r"No space left.*Nothing there was changed; free some space"):
        write(tmp_path, "new", failure=OSError(errno.ENOSPC, "No space left on device"))
    assert texts(tmp_path) == dict.fromkeys(FILES, "old")


def test_a_folder_is_made_with_its_parents(tmp_path):
    write(tmp_path / "a" / "b", "new")
    assert texts(tmp_path / "a" / "b") == dict.fromkeys(FILES, "new")


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DualHeadError, match=r"Cannot write to '.*out': .*Choose another output folder"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.heavy
@pytest.mark.parametrize("replaces", ["", "*.txt"], ids=["beside", "instead"])
def test_a_kill_before_any_file_operation_leaves_the_old_files_or_the_new_ones(tmp_path, replaces):
    """Old files are a.txt and the others; the new ones lack a.txt."""
    before = {**dict.fromkeys(FILES, "old"), "a.txt": "old"}
    after = dict.fromkeys(FILES, "new") | ({} if replaces else {"a.txt": "old"})
    total = int(run(tmp_path / "count", "new", *FILES, replaces=replaces).stdout)
    outcomes = []

    def trial(at: int) -> dict[str, str]:
        folder = tmp_path / str(at)
        write(folder, "old", before)
        killed = run(folder, "new", *FILES, at=at, replaces=replaces)
        assert killed.returncode == -signal.SIGKILL
        settle(folder)
        assert [path.name for path in folder.iterdir() if path.name.startswith((WRITING, READY))] == []
        return texts(folder)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(trial, range(1, total + 1)))
    assert all(outcome in (before, after) for outcome in outcomes)
    assert before in outcomes
    assert after in outcomes


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with atomic_folder(tmp_path) as mine:
        (mine / "config.json").write_text("mine")
        write(tmp_path, "other", ["other.json"])
        settle(tmp_path)
        assert (mine / "config.json").is_file()
    assert texts(tmp_path) == {"config.json": "mine", "other.json": "other"}


@pytest.mark.heavy
def test_many_processes_write_into_one_folder_at_once(tmp_path):
    with ThreadPoolExecutor(12) as pool:
        runs = list(pool.map(lambda i: run(tmp_path, str(i), *FILES), range(12)))
    assert [done.stderr for done in runs] == [""] * 12
    assert len(set(texts(tmp_path).values())) == 1  # of one of them, and whole
    assert len(list(tmp_path.iterdir())) == len(FILES)


def test_a_place_is_held_by_one_process_at_a_time(tmp_path):
    place = tmp_path / "rows.jsonl"
    with (
        exclusive(place),
        pytest.raises(DualHeadError, match=r"Another process is writing to .*rows\.jsonl"),
        exclusive(place),
    ):
        raise AssertionError("held twice")
    with exclusive(place), exclusive(tmp_path), exclusive(tmp_path, main=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_changes(tmp_path):
    write(tmp_path, "old", ["model.safetensors"])
    (tmp_path / "config.json").mkdir()
    with pytest.raises(
        DualHeadError, match=r"a folder is where the file 'config\.json' goes\. Nothing there was changed"
    ):
        write(tmp_path, "new")
    assert (tmp_path / "model.safetensors").read_text() == "old"


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_place_that_cannot_be_written_is_refused_and_can_still_be_settled(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DualHeadError, match="Choose another output folder"):
        write(tmp_path, "new")
    settle(tmp_path)


def test_a_set_that_counts_is_finished_by_whoever_comes_next(tmp_path):
    ready = tmp_path / f"{READY}3f9a"
    ready.mkdir()
    (ready / NAMES).write_text(json.dumps({"names": ["a.txt", "config.json"], "replaces": []}))
    (ready / "config.json").write_text("new")
    (tmp_path / "a.txt").write_text("new")  # had its place already
    write(tmp_path, "later", ["b.txt"])
    assert texts(tmp_path) == {"a.txt": "new", "config.json": "new", "b.txt": "later"}


# ---- whose a place is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "m.gguf"])
def test_a_folder_that_holds_somebody_elses_model_is_refused(tmp_path, name):
    (tmp_path / name).write_text("a model")
    with pytest.raises(DualHeadError, match=rf"holds {name}, which this command did not write and would replace"):
        require_place(tmp_path, record="run.json")
    (tmp_path / "run.json").write_text("{}")
    require_place(tmp_path, record="run.json")


def test_other_files_and_folders_that_are_not_there_are_no_obstacle(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    require_place(tmp_path, record="run.json")
    require_place(tmp_path / "new", record="run.json", reads=[tmp_path / "new"])


def test_what_is_read_is_never_written_over_by_whatever_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "run.json").write_text("{}")
    for source in (tmp_path / "link", f"{tmp_path}/./model"):
        with pytest.raises(DualHeadError, match="is an input of this command and is not overwritten"):
            require_place(tmp_path / "model", record="run.json", reads=[None, "owner/on-the-hub", source])


def test_a_damaged_record_of_an_export_is_refused_in_words_and_can_be_replaced(tmp_path):
    (tmp_path / "merge.json").write_text("{")
    with pytest.raises(DualHeadError, match=r"merge\.json.*it is not whole JSON.*replace the model with --overwrite"):
        require_empty(tmp_path, record="merge.json")
    assert not require_empty(tmp_path, record="merge.json", overwrite=True)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ('{"names": ["config.json"', "it is not whole JSON"),
        ('{"names": ["config.json"]}', "it lacks 'replaces'"),
        ('{"names": ["../precious"], "replaces": []}', "it names files of another folder"),
        ('{"names": [], "replaces": ["../prec*"]}', "it names files of another folder"),
    ],
)
def test_a_list_of_files_that_cannot_be_trusted_moves_none(tmp_path, listed, reason):
    """As a folder that was copied from elsewhere may hold it; `settle` looks before anything there is read."""
    ready = tmp_path / "out" / f"{READY}3f9a"
    ready.mkdir(parents=True)
    (ready / NAMES).write_text(listed)
    (ready / "config.json").write_text("new")
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(DualHeadError, match=rf"{reason}\. Delete the folder '.*{READY}3f9a'"):
        settle(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (ready / "config.json").read_text() == "new"


def test_a_link_to_another_folder_is_no_set_of_files(tmp_path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    write(elsewhere, "theirs")
    (elsewhere / NAMES).write_text(json.dumps({"names": list(FILES), "replaces": []}))
    out.mkdir()
    (out / f"{READY}3f9a").symlink_to(elsewhere)
    settle(out)
    assert texts(elsewhere).keys() == {*FILES, NAMES}


@pytest.mark.parametrize(
    "text",
    [
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0",
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_a_full_disk_is_known_whichever_library_tells_of_it(text):
    failure = system_failure(RuntimeError(text))
    assert failure is not None
    assert failure.errno == errno.ENOSPC


def test_an_error_of_something_else_is_no_failure_of_the_system():
    assert system_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
