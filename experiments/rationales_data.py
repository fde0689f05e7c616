"""The data of the rationale experiment: three sets that people or a teacher explained, and one whose steps are known.

In the last one somebody is in a room because of whom they are with, who is with somebody else: a rationale walks that
chain, and the label is the room. It knows files and rows, and no model.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from evidence_data import write_text

from dual_head.errors import DualHeadError

ROOMS = ("kitchen", "garden", "office", "attic")
NAMES = ("Ann", "Bob", "Carl", "Dora", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo")
HOPS, PEOPLE = 1, 4  # whom to ask after another before a room is named; sentences of a row
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
    chains = folder / "chains"
    for split, count, seed in (("train", rows, TRAIN_SEED), ("test", test_rows, TEST_SEED)):
        lines = (json.dumps(row) + "\n" for row in chain_rows(count, seed))
        write_text(chains / f"{split}.jsonl", "".join(lines))
    return {
        # Its train split is not among what can be had as plain files: dev is trained on, test is judged.
        "esnli": Dataset(title="e-SNLI", path=there / "esnli", train_split="dev", test_split="test"),
        "creak": Dataset(title="CREAK", path=there / "creak", train_split="train", test_split="dev"),
        "cqa": Dataset(title="CommonsenseQA", path=there / "cqa_palm", train_split="train", test_split="test"),
        "chains": Dataset(title=f"chains of {HOPS + 1}", path=chains, train_split="train", test_split="test"),
    }


def chain_rows(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows {"input_text", "label", "rationale"}; every room is asked for as often as any other."""
    rng = random.Random(seed)
    for i in range(count):
        yield chain_row(rng, ROOMS[i % len(ROOMS)])


def chain_row(rng: random.Random, room: str) -> dict[str, str]:
    """One row: two people in two rooms, everybody else with one of those before; who is asked for is HOPS away.

    The room alone, or whom the one asked for is with, tells nothing: both rooms are in the text.
    """
    names = rng.sample(NAMES, PEOPLE)
    other = rng.choice([name for name in ROOMS if name != room])
    # Two chains as long as each other, so that no length gives the right one away.
    chains = names[: PEOPLE // 2], names[PEOPLE // 2 :]
    said = []
    for chain, where in zip(chains, (room, other), strict=True):
        said.append(f"{chain[0]} is in the {where}.")
        said += [f"{after} is with {before}." for before, after in pairwise(chain)]
    own = said[HOPS::-1]
    rng.shuffle(said)
    asked = chains[0][HOPS]
    return {"input_text": " ".join([*said, f"Where is {asked}?"]), "label": room, "rationale": " ".join(own)}
