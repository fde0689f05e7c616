"""A file that was flipped, cut or emptied: whoever reads it refuses it in a paragraph, or comes to the same result.

DUAL_HEAD_SEED chooses where; the long version prints it with its totals.
"""

import contextlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from robustness.forks import Ended, run
from robustness.writers import argv_of, write_inputs

SEED = int(os.environ.get("DUAL_HEAD_SEED", "0"))
STEPS = ["--max_steps", "3", "--save_steps", "1", "--save_total_limit", "3"]
PROMPT = ["--prompt", "ask1 ask2", "--max_new_tokens", "6", "--no_stream", "--trace"]
TRAINED = ["checkpoint-2/" + name for name in ("model.safetensors", "optimizer.pt", "trainer_state.json")]
STATES = ["checkpoint-2/" + name for name in ("scheduler.pt", "rng_state.pth", "config.json", "checksums.json")]
MODEL = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
KEPT = ["answers/b.jsonl", "verdicts/verdicts.jsonl", "report.json"]
SHARDS = ["features-00000.safetensors", "features-00000.json", "manifest.json", "head.safetensors", "config.json"]
# Whose bits are in no checksum: another bit may be another number, and nobody can tell.
UNCHECKED = {
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("answers/b.jsonl", "verdicts/verdicts.jsonl", "sweep.jsonl", "classes.jsonl"),
}


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_header(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit where safetensors say what follows, and zip files and JSON begin."""
    return flip(data[:200], rng) + data[200:]


DAMAGES = {
    "flipped": flip,
    "flipped near its beginning": flip_header,
    "cut to half": lambda data, rng: data[: len(data) // 2],
    "cut by a byte": lambda data, rng: data[:-1],
    "emptied": lambda data, rng: b"",
    "random bytes": lambda data, rng: rng.randbytes(64),
    "a list": lambda data, rng: b"[]",
}


@dataclass
class Kind:
    """Files of a folder that is copied to `place`, damaged there, and read by a command that comes to `result`."""

    make: Callable[[Path], object]
    files: list[str]
    argv: list[str]
    result: Callable[[Ended], object]
    unchecked: tuple[str, ...] = ()


class Damages:
    """All kinds of files, and one trial of one of them."""

    def __init__(self, root: Path):
        (root / "inputs").mkdir()
        self.root, self.place = root, root / "place"
        self.inputs = inputs = write_inputs(root / "inputs")
        guides, classifier = Path(inputs["guides"]), Path(inputs["classifier"])
        predict = ["classify", "predict", str(self.place), "--input", inputs["rows"]]
        again = [*self.argv("cache")[:-1], str(root / "trained"), "--feature_cache", str(self.place)]
        self.kinds = {
            "guides": Kind(copy(guides), MODEL, ["generate", str(self.place), *PROMPT], output),
            "classifier": Kind(copy(classifier), MODEL, predict, output),
            "backbone": Kind(
                copy(inputs["backbone"]),
                ["model.safetensors", "config.json"],
                ["generate", str(guides), "--backbone", str(self.place), *PROMPT],
                output,
                unchecked=("model.safetensors",),
            ),
            "checkpoint of train": self.interrupted("train", [*TRAINED, *STATES]),
            "checkpoint of classify train": self.interrupted("classify train", TRAINED),
            "record of train": self.interrupted("train", ["run.json"]),
            "cache, verified": self.finished("cache", SHARDS, ["cache", "--verify", str(self.place)], output),
            "cache, trained from": self.finished("cache", SHARDS, training(again), self.weights(root / "trained")),
        }
        self.kinds["eval, again"] = self.finished("eval", KEPT, self.argv("eval"), self.rows)
        for name, files in {
            "cache": SHARDS,
            "sweep": ["sweep.jsonl", "sweep_run.json"],
            "classify predict": ["classes.jsonl", "classes.jsonl.run.json"],
            "merge": ["merge.json", "model.safetensors"],
            "classify export": ["export.json", "model.safetensors"],
        }.items():
            self.kinds[f"{name}, again"] = self.finished(name, files, self.argv(name), self.written)
        self.whole: dict[str, object] = {}

    def argv(self, name: str) -> list[str]:
        return argv_of(name, self.inputs, self.place) + STEPS * name.endswith("train")

    def finished(self, name: str, files: list[str], argv: list[str], result: Callable[[Ended], object]) -> Kind:
        """The folder that a command leaves, made at the one place since some remember where they wrote."""
        aside = self.root / name

        def make(place: Path) -> None:
            if not aside.exists():
                ended = run(self.argv(name))
                assert ended.kind == "ok", ended.err
                shutil.copytree(place, aside)
            else:
                shutil.copytree(aside, place)

        return Kind(make, files, argv, result)

    def interrupted(self, name: str, files: list[str]) -> Kind:
        """A run as it was after its second step."""
        whole = self.finished(name, files, self.argv(name), self.weights(self.place))

        def make(place: Path) -> None:
            whole.make(place)
            shutil.rmtree(place / "checkpoint-3")
            for file in place.iterdir():
                if file.is_file() and file.name != "run.json":
                    file.unlink()

        return Kind(make, files, whole.argv, whole.result)

    def written(self, ended: Ended) -> dict[str, bytes]:
        files = (file for file in self.place.rglob("*") if file.is_file() and "report" not in file.name)
        # A last line that is whole but for its end is kept as it is.
        return {str(file.relative_to(self.place)): file.read_bytes().removesuffix(b"\n") for file in files}

    def rows(self, ended: Ended) -> dict[str, str]:
        """What was kept: of each key its last line; what a line was that was cut is read by nobody."""
        lines = [line for name in KEPT[:2] for line in (self.place / name).read_text(errors="replace").split("\n")]
        return {row["key"]: line for line in lines if (row := _row(line))}

    def weights(self, folder: Path) -> Callable[[Ended], object]:
        return lambda ended: (folder / "model.safetensors").read_bytes()

    def read(self, kind: Kind, damage: Callable[[Path], object]) -> tuple[Ended, object]:
        for folder in (self.place, self.root / "trained"):
            shutil.rmtree(folder, ignore_errors=True)
        kind.make(self.place)
        damage(self.place)
        ended = run(kind.argv)
        return ended, kind.result(ended) if ended.kind == "ok" else None

    def trial(self, what: str, name: str, how: str, rng: random.Random) -> tuple[str, str]:
        """Damage one file and read it: one word for the end of it, and all that is to be known of it."""
        kind = self.kinds[what]
        if what not in self.whole:
            ended, self.whole[what] = self.read(kind, lambda place: None)
            assert ended.kind == "ok", f"{what}: {ended.err}"

        def damage(place: Path) -> None:
            (place / name).write_bytes(DAMAGES[how]((place / name).read_bytes(), rng))

        ended, result = self.read(kind, damage)
        outcome = ended.kind
        if outcome == "ok":
            allowed = how.startswith("flipped") and name in UNCHECKED.union(kind.unchecked)
            outcome = "same" if result == self.whole[what] else "unnoticed" if allowed else "WRONG"
        return outcome, f"{what}, {name} {how}: {outcome} {ended.err[-600:]}"


def _row(line: str) -> dict | None:
    with contextlib.suppress(ValueError):
        row = json.loads(line)
        return row if isinstance(row, dict) and "key" in row else None
    return None


def copy(folder: str | Path) -> Callable[[Path], object]:
    return lambda place: shutil.copytree(folder, place)


def output(ended: Ended) -> str:
    return ended.out


def training(argv: list[str]) -> list[str]:
    return ["train", "hidden", *argv[1:], *STEPS]


@pytest.fixture(scope="module")
def damages(tmp_path_factory) -> Damages:
    return Damages(tmp_path_factory.mktemp("damages"))


def test_a_damaged_file_of_each_kind_is_refused_or_changes_nothing(damages):
    """Every other kind with a bit flipped, and the others cut."""
    rng = random.Random(SEED)
    wrong = []
    for number, (what, kind) in enumerate(damages.kinds.items()):
        how = "flipped" if number % 2 else rng.choice(["cut to half", "cut by a byte", "emptied"])
        outcome, text = damages.trial(what, rng.choice(kind.files), how, rng)
        wrong += [text] * (outcome not in ("same", "refused", "unnoticed"))
    assert wrong == []


@pytest.mark.slow
def test_damaged_files_are_refused_or_change_nothing(damages, capsys):
    """Every file in every way."""
    rng = random.Random(SEED)
    wrong, counts = [], Counter()
    for what, kind in damages.kinds.items():
        for name in kind.files:
            for how in DAMAGES:
                outcome, text = damages.trial(what, name, how, rng)
                counts[outcome] += 1
                wrong += [text] * (outcome not in ("same", "refused", "unnoticed"))
    with capsys.disabled():
        print(f"\ndamaged files, seed {SEED}: {counts.total()} trials, {dict(counts)}")
    assert wrong == []
