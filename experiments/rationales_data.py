"""The data of the rationale experiment: three sets that people or a teacher explained, and one whose steps are known.

In the last one a lamp is switched a few times and left alone a few times: the label is what it is in the end, and a
rationale says what it is after each time. It knows files and rows, and no model.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence_data import write_text

from dual_head.errors import DualHeadError

NAMES = ("Ann", "Bob", "Carl", "Dora", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo")
TURNS = 3  # of people who switch the lamp or leave it
TRAIN_SEED, TEST_SEED = 1, 2


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where rows are trained on and judged; train_split, test_split: of one folder."""

    title: str
    path: Path
    train_split: str
    test_split: str

    def options(self) -> dict[str, Any]:
        """What `ClassifyOptions` is told of it."""
        return {"dataset_name": str(self.path), "dataset_split": self.train_split}


def datasets(data: Path, folder: Path, *, rows: int, test_rows: int) -> Mapping[str, Dataset]:
    """All of them by name; the synthetic one is written into `folder`. Errors: no such files in `data`."""
    there = data / "rationales"
    if not there.is_dir():
        raise DualHeadError(f"There is no folder '{there}'. Give the one that holds rationales/ with --data.")
    lamp = folder / "lamp"
    for split, count, seed in (("train", rows, TRAIN_SEED), ("test", test_rows, TEST_SEED)):
        lines = (json.dumps(row) + "\n" for row in lamp_rows(count, seed))
        write_text(lamp / f"{split}.jsonl", "".join(lines))
    return {
        # Its train split is not among what can be had as plain files: dev is trained on, test is judged.
        "esnli": Dataset(title="e-SNLI", path=there / "esnli", train_split="dev", test_split="test"),
        "creak": Dataset(title="CREAK", path=there / "creak", train_split="train", test_split="dev"),
        "cqa": Dataset(title="CommonsenseQA", path=there / "cqa_palm", train_split="train", test_split="test"),
        "lamp": Dataset(title=f"A lamp and {TURNS} people", path=lamp, train_split="train", test_split="test"),
    }


def lamp_rows(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows {"input_text", "label", "rationale"}; as many end in the light as in the dark."""
    rng = random.Random(seed)
    for i in range(count):
        turns = [rng.random() < 0.5 for _ in range(TURNS - 1)]
        yield lamp_row(rng.sample(NAMES, TURNS), [*turns, sum(turns) % 2 != i % 2])


def lamp_row(names: Sequence[str], switches: Sequence[bool]) -> dict[str, str]:
    """One row: the lamp is off, and everybody in turn switches it or leaves it. No sentence alone tells the label."""
    said, after, on = ["The lamp is off."], [], False
    for name, switched in zip(names, switches, strict=True):
        on ^= switched
        said.append(f"{name} {'flips' if switched else 'leaves'} it.")
        after.append(f"After {name} it is {'on' if on else 'off'}.")
    return {"input_text": " ".join(said), "label": "on" if on else "off", "rationale": " ".join(after)}
