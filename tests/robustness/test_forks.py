"""The harness of the campaigns tells the ends of commands apart."""

import os
import signal

import pytest
from robustness.forks import killing, run, start


@pytest.mark.parametrize(
    ("argv", "before", "kind"),
    [
        (["--version"], "", "ok"),
        (["inspect", "nowhere"], "", "refused"),
        (["inspect", "nowhere"], "raise KeyError('a bug')", "traceback"),
        (["inspect", "nowhere"], "raise KeyboardInterrupt", "traceback"),
        (["inspect", "nowhere"], "raise SystemExit(7)", "rc=7"),
        (["inspect", "nowhere"], "bytes(2**31)", "traceback"),
    ],
)
def test_the_end_of_a_command_is_one_word(argv, before, kind):
    assert run(argv, before=before, memory=2**31).kind == kind


def test_a_command_without_end_is_killed():
    assert run([], before="import time; time.sleep(60)", timeout=0.2).kind == "hang"


def test_two_commands_run_at_once_and_take_signals():
    first = start([], before="print('begun', flush=True)\nimport time; time.sleep(60)")
    assert run(["--version"]).out.startswith("dual-head ")
    os.killpg(first.pid, signal.SIGTERM)
    assert first.wait().kind == "signal 15"


def test_a_kill_comes_before_the_nth_file_operation(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "out"
    writes = f"import os\nfor name in 'ab': os.mkdir({str(folder)!r} + name)"
    assert run(["--version"], before=f"{killing(folder, 0, log)}\n{writes}").kind == "ok"
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["os.mkdir", "os.mkdir"]
    for name in "ab":
        (tmp_path / f"out{name}").rmdir()
    assert run(["--version"], before=f"{killing(folder, 2)}\n{writes}").kind == "signal 9"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["outa"]
