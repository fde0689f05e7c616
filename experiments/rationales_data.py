"""The data of the rationale experiment: three sets that people or a teacher explained, and one whose steps are known.

In the last one three people are given something to eat: they are happy where most like what they got, and a rationale
says of each whether they do. Who likes what is nowhere else. It knows files and rows, and no model.
"""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence_data import write_text

from dual_head.errors import DualHeadError

SYNTHETIC = "tastes"
PEOPLE = ("Ann", "Bob", "Carl", "Dora", "Emma", "Frank")
FOODS = ("cake", "milk", "soup", "fish", "eggs", "rice")
GIVEN = 3  # people of a row
SEED = 1


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
    made, place = taste_rows(), folder / SYNTHETIC
    for split, own in (("train", made[test_rows : test_rows + rows]), ("test", made[:test_rows])):
        write_text(place / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in own))
    return {
        # Its train split is not among what can be had as plain files: dev is trained on, test is judged.
        "esnli": Dataset(title="e-SNLI", path=there / "esnli", train_split="dev", test_split="test"),
        "creak": Dataset(title="CREAK", path=there / "creak", train_split="train", test_split="dev"),
        "cqa": Dataset(title="CommonsenseQA", path=there / "cqa_palm", train_split="train", test_split="test"),
        SYNTHETIC: Dataset(title=f"Tastes of {GIVEN} people", path=place, train_split="train", test_split="test"),
    }


def tastes() -> dict[tuple[str, str], bool]:
    """Who likes what: everybody half of all foods, and every food half of all people."""
    liked = {(name, FOODS[(i + j) % len(FOODS)]) for i, name in enumerate(PEOPLE) for j in range(len(FOODS) // 2)}
    return {pair: pair in liked for pair in itertools.product(PEOPLE, FOODS)}


def taste_rows() -> list[dict[str, str]]:
    """All 25,920 rows {"input_text", "label", "rationale"} in an order drawn once: half of them are happy."""
    rows = [
        taste_row(list(zip(names, foods, strict=True)))
        for names in itertools.permutations(PEOPLE, GIVEN)
        for foods in itertools.product(FOODS, repeat=GIVEN)
    ]
    random.Random(SEED).shuffle(rows)
    return rows


def taste_row(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """One row: who got what. Whether they like it is in no sentence, and no name or food alone tells it."""
    likes = tastes()
    return {
        "input_text": " ".join(f"{name} got {food}." for name, food in given),
        "label": "happy" if sum(likes[pair] for pair in given) * 2 > len(given) else "sad",
        "rationale": " ".join(f"{name} {'likes' if likes[name, food] else 'hates'} {food}." for name, food in given),
    }
