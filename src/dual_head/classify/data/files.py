"""Rows of data sets whose files are not rows: e-SNLI's aligned texts, CommonsenseQA's chains beside its questions."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dual_head.classify.data.rows import Rows
from dual_head.data import RowReport
from dual_head.data.files import rows_of_file
from dual_head.data.sources import rows_of
from dual_head.errors import DualHeadError

_DEV = ("dev", "validation", "valid", "val")
_SPLITS = {"train": ("train",), "test": ("test",)} | dict.fromkeys(_DEV, _DEV)
CHAIN = "chain_of_thought"  # the column that is added to rows of CommonsenseQA


def _split(split: str, present: Collection[str], root: Path) -> str:
    """The name that a split has here. Errors: there is none."""
    names = [name for name in _SPLITS.get(split, (split,)) if name in present]
    if not names:
        raise DualHeadError(f"'{root}' has no split '{split}'. It has: {', '.join(sorted(present))}.")
    return names[0]


def esnli_rows(root: Path, split: str, drops: RowReport) -> Rows | None:
    """Rows of e-SNLI's aligned files s1.SPLIT, s2.SPLIT, labels.SPLIT and preproc1_expl_{1,2,3}.SPLIT."""
    if not root.is_dir() or not any(root.glob("s1.*")) or not any(root.glob("labels.*")):
        return None
    present = {path.suffix[1:] for path in root.glob("s1.*")}
    if split == "train" and "train" not in present and "dev" in present:
        drops.notes[f"'{root}' has no train split; its dev split is read instead"] += 1
        split = "dev"
    suffix = _split(split, present, root)
    files = {"premise": "s1", "hypothesis": "s2", "label": "labels"}
    files |= {
        f"explanation_{i}": f"preproc1_expl_{i}" for i in (1, 2, 3) if (root / f"preproc1_expl_{i}.{suffix}").exists()
    }
    rows = len(_lines(root / f"s1.{suffix}"))
    columns = {
        column: _lines(root / f"{file}.{suffix}", rows if "expl" in file else None) for column, file in files.items()
    }
    lengths = {f"{files[column]}.{suffix}": len(lines) for column, lines in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DualHeadError(
            f"The files in '{root}' do not belong together: they have {lengths} lines. Copy them again."
        )
    aligned = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return ((row, f"{root / f's1.{suffix}'}:{i}") for i, row in enumerate(aligned, 1))


def _lines(file: Path, rows: int | None = None) -> list[str]:
    # str.splitlines would cut at characters that stand inside sentences.
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DualHeadError(f"'{file}' is not UTF-8 text ({error.reason}). Copy it again.") from error
    # What follows the last line break is the last explanation, which may be blank, or nothing.
    return lines[:-1] if not lines[-1] and len(lines) != rows else lines


def cqa_rows(root: Path, split: str, drops: RowReport) -> Rows | None:
    """Rows of cqa_SPLIT.json with chains of thought of SPLIT_CoT_0.json, SPLIT_CoT_1.json, ... beside or in palm/."""
    if root.is_file():
        named = re.fullmatch(r"cqa_(\w+)\.json", root.name)
        files = {named[1]: root} if named else {}
        split = named[1] if named else split
    else:
        files = {path.stem.removeprefix("cqa_"): path for path in root.glob("cqa_*.json")}
    if not files:
        return None
    split = _split(split, files, root)
    file = files[split]
    rows = list(rows_of(str(file), split, None, drops))
    chains = _chains(file.parent, split, drops)
    if not chains:
        drops.notes["no chains of thought beside the questions; human explanations instead"] += 1
        return iter(rows)
    if len(chains) != len(rows):
        raise DualHeadError(f"'{file}' has {len(rows)} rows and {len(chains)} chains of thought. Copy the files again.")
    pairs = zip(rows, chains, strict=True)
    return (({**row, CHAIN: chain} if isinstance(row, dict) else row, where) for (row, where), chain in pairs)


def _chains(folder: Path, split: str, drops: RowReport) -> list[Any]:
    """All chains of thought of a split, the files in the order of their numbers."""
    for place in (folder, folder / "palm"):
        matches = {
            file: re.fullmatch(rf"{split}_CoT_(\d+)\.json", file.name) for file in place.glob(f"{split}_CoT_*.json")
        }
        numbers = {int(match[1]): file for file, match in matches.items() if match}
        if numbers:
            if sorted(numbers) != list(range(len(numbers))):
                raise DualHeadError(
                    f"'{place}' has {split}_CoT files {sorted(numbers)}; one is missing. Copy it there."
                )
            return [chain for number in sorted(numbers) for chain in _array(numbers[number], drops)]
    return []


def _array(file: Path, drops: RowReport) -> list[Any]:
    rows = [row for row, _ in rows_of_file(file, drops)]
    if None in rows:
        raise DualHeadError(f"'{file}' is not whole JSON. Copy it again.")
    return rows
