"""A command killed before any of its file operations: the same again ends with what a run left alone writes.

DUAL_HEAD_SEED chooses where; the long version prints it with its totals.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from robustness.forks import killing, run
from robustness.writers import WRITERS, argv_of, litter, write_inputs

SEED = int(os.environ.get("DUAL_HEAD_SEED", "0"))
ELSEWHERE = "classify rationales"  # asks an endpoint; tests/classify/rationales/test_teacher.py has one and stops it
APPENDS = "generate"  # the same command again adds replies, also where the first was killed as it ended
SHORT = ("train", "cache", "sweep", "eval", "merge", "compose", "classify predict", "classify export")
# Curves are of a log that a kill after the last step leaves without its summary; a kill before the seal leaves none.
UNLIKE = ("curves.png", "checksums.json")
STEPS = ["--max_steps", "3", "--save_steps", "1", "--logging_steps", "1"]  # checkpoints to go on from


class Trials:
    """Runs of one command into one folder, some of them killed."""

    def __init__(self, name: str, inputs: dict[str, str], root: Path):
        self.name, self.out, self.log = name, root / "out" / "here", root / "log"
        self.argv = argv_of(name, inputs, self.out) + STEPS * name.endswith("train")
        self.clear()
        self.log.unlink(missing_ok=True)
        ended = run(self.argv, before=killing(self.out, 0, self.log))
        assert ended.kind == "ok", f"{name}: {ended.err}"
        self.operations = self.log.read_text().splitlines()
        self.whole = self.written()

    def clear(self) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()

    def written(self) -> dict[str, bytes]:
        """Every file by its name.

        Reports say how long a run took, so they only need to be whole.
        """
        files = {str(file.relative_to(self.out)): file for file in self.out.rglob("*") if file.is_file()}
        reports = [name for name in files if Path(name).name == "report.json"]
        assert all(isinstance(json.loads(files[name].read_text()), dict) for name in reports)
        return {
            name: b"" if name in reports else file.read_bytes()
            for name, file in files.items()
            if file.name not in UNLIKE
        }

    def killed(self, *points: int) -> str:
        """Kill it before the operations of these numbers, one run each, and let it end: what is wrong then, or ""."""
        self.clear()
        ends = [run(self.argv, before=killing(self.out, at)).kind for at in points]
        last = run(self.argv)
        where = ", ".join(f"{at}: {self.operations[at - 1]}" for at in points)
        if set(ends) - {"signal 9", "ok"} or last.kind != "ok":
            return f"{self.name} killed at {where}: {ends}, then {last.kind}: {last.err[-500:]}"
        now = self.written()
        changed = sorted(name for name in now.keys() | self.whole.keys() if now.get(name) != self.whole.get(name))
        if changed or litter(self.out):
            return f"{self.name} killed at {where}: differs in {changed}, leaves {litter(self.out)}"
        return ""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_each_command_goes_on_after_a_kill_as_if_nothing_had_been(inputs, tmp_path):
    rng = random.Random(SEED)
    wrong = []
    for name in SHORT:
        trials = Trials(name, inputs, tmp_path)
        wrong.append(trials.killed(rng.randint(1, len(trials.operations))))
    assert [text for text in wrong if text] == []


@pytest.mark.slow
def test_each_command_goes_on_after_kills_anywhere(inputs, tmp_path, capsys):
    """Eight times each, killed twice every other time."""
    rng = random.Random(SEED)
    wrong, count = [], 0
    for name in sorted(set(WRITERS) - {ELSEWHERE, APPENDS}):
        trials = Trials(name, inputs, tmp_path)
        for number in range(8):
            points = rng.choices(range(1, len(trials.operations) + 1), k=1 + number % 2)
            wrong.append(trials.killed(*points))
            count += 1
    wrong = [text for text in wrong if text]
    with capsys.disabled():
        print(f"\nkills, seed {SEED}: {count} trials, {len(wrong)} not as if nothing had been")
    assert wrong == []
