"""The texts of the evidence run: dialogues in four parts that share no prompt, and documents to pretrain on.

It knows files of preference pairs and of plain text. It knows no tokenizer, no model and no judge.
"""

import gzip
import hashlib
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from dual_head import load_pairs
from dual_head.data import Pair
from dual_head.errors import DualHeadError

# train: guides and fine-tuning; judge: the reward model; dev: the search; test: every table.
PARTS: Mapping[str, float] = {"train": 0.5, "judge": 0.33, "dev": 0.05, "test": 0.12}
FEW_PROMPTS: Mapping[str, float] = {"train": 0.25, "judge": 0.3, "dev": 0.05, "test": 0.4}  # where pairs share prompts
FEW_PAIRS: Mapping[str, float] = {"train": 0.36, "judge": 0.36, "dev": 0.03, "test": 0.25}  # and many prompts are long
# Files of people's preferences, below the folder of data: of HH-RLHF, and of PKU-SafeRLHF.
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "helpful": ("hh_rlhf/helpful-base.test.jsonl.gz", "hh_rlhf/helpful-rejection-sampled.test.jsonl.gz"),
    "harmless": ("hh_rlhf/harmless-base.test.jsonl.gz",),
    "safer": ("pku_safe_rlhf/pku_safe_rlhf_5k.json.gz",),
}
FILE_OBJECTIVE = {"safer": "harmless"}  # as a format that has several calls it
DIALOGUES = ("helpful", "harmless")  # objectives of HH-RLHF
SHARES: Mapping[str, float] = {"dialogues": 0.35, "questions": 0.3, "services": 0.2, "stories": 0.15}  # of characters
LONGEST = 1200  # characters of a document: a block has room for about as many


# ---- parts that share no prompt -------------------------------------------------------------------------


def opening(prompt: Any) -> str:
    """What the user said first: all depths of one dialogue begin with it."""
    return prompt if isinstance(prompt, str) else next((m["content"] for m in prompt if m["role"] == "user"), "")


def part_of(prompt: Any, parts: Mapping[str, float] = PARTS, seed: int = 0) -> str:
    """Say which part a prompt belongs to, by sha256(seed, opening) / 2^256 as `split_by_prompt` does by prompt.

    Dialogues that begin alike are in one part, whatever file they come from, and no row moves another.
    """
    # Case and spaces differ between copies of one question.
    text = " ".join(opening(prompt).lower().split())
    at = int.from_bytes(hashlib.sha256(json.dumps([seed, text]).encode()).digest()) / 2**256
    for name, share in parts.items():
        if at < share:
            return name
        at -= share
    return list(parts)[-1]  # rounding of the shares


def in_parts(pairs: Iterable[Pair], parts: Mapping[str, float] = PARTS, seed: int = 0) -> dict[str, list[Pair]]:
    """Sort pairs by part, in their order."""
    sorted_: dict[str, list[Pair]] = {name: [] for name in parts}
    for pair in pairs:
        sorted_[part_of(pair.prompt, parts, seed)].append(pair)
    return sorted_


def pairs_of(data: Path, objective: str) -> list[Pair]:
    """All pairs of people's preferences of one objective. Errors: a file that is not below `data`."""
    pairs = []
    for name in OBJECTIVES[objective]:
        file = data / name
        if not file.is_file():
            raise DualHeadError(f"There is no file '{file}'. Give the folder that holds {name} with --data.")
        pairs += load_pairs(str(file), objective=FILE_OBJECTIVE.get(objective))[0]
    return pairs


def write_parts(data: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Write pairs-OBJECTIVE-PART.jsonl of HH-RLHF's objectives and of "overall", which is both; count the pairs."""
    counts: dict[str, dict[str, int]] = {}
    everything: dict[str, list[Pair]] = {name: [] for name in PARTS}
    for objective in DIALOGUES:
        parts = in_parts(pairs_of(data, objective))
        for part, rows in parts.items():
            write_pairs(folder / f"pairs-{objective}-{part}.jsonl", rows)
            everything[part] += rows
        counts[objective] = {part: len(rows) for part, rows in parts.items()}
    for part, rows in everything.items():
        Random(0).shuffle(rows)  # whoever reads the first rows sees both objectives
        write_pairs(folder / f"pairs-overall-{part}.jsonl", rows)
    return counts | {"overall": {part: len(rows) for part, rows in everything.items()}}


def write_pairs(file: Path, pairs: Sequence[Pair]) -> None:
    """Write conversational pairs as TRL has them."""
    rows = [
        {
            "prompt": list(pair.prompt),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    write_rows(file, rows)


def write_rows(file: Path, rows: Iterable[Any]) -> None:
    """Write JSONL, whole or not at all."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(file: Path, text: str) -> None:
    """Write a whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)


def write_json(file: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all."""
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


# ---- documents to pretrain on -----------------------------------------------------------------------------


def documents(data: Path, pairs: Sequence[Pair], *, characters: int, seed: int = 0) -> Iterator[str]:
    """Yield about so many characters of documents from every source by `SHARES`, transcripts of `pairs` among them."""
    sources = {name: texts for name, texts in _sources(data, pairs).items() if texts}
    rng = Random(seed)
    for texts in sources.values():
        rng.shuffle(texts)
    streams, given = {name: cycle(texts) for name, texts in sources.items()}, dict.fromkeys(sources, 0)
    while sum(given.values()) < characters:
        behind = min(sources, key=lambda name: given[name] / SHARES[name])
        text = next(streams[behind])
        given[behind] += len(text)
        yield text


def transcript(turns: Iterable[tuple[str, str]]) -> str:
    """A dialogue as `dual_head.data.conversation` writes it, from (speaker, text)."""
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in turns)


def transcripts(pairs: Iterable[Pair]) -> list[str]:
    """Both replies of each pair after its prompt, each dialogue once, without its beginning where it is long."""
    speakers = {"user": "Human", "assistant": "Assistant", "system": "System"}
    texts = []
    for pair in pairs:
        turns = [(speakers[m["role"]], m["content"]) for m in pair.prompt if isinstance(m, dict)]
        texts += [transcript([*turns, ("Assistant", reply)])[-2 * LONGEST :] for reply in (pair.chosen, pair.rejected)]
    return list(dict.fromkeys(texts))


def _sources(data: Path, pairs: Sequence[Pair]) -> dict[str, list[str]]:
    text = data / "text"
    return {
        "dialogues": transcripts(pairs),
        "questions": [
            transcript([("Human", row["prompt"].strip()), ("Assistant", row["completion"].split("<|")[0].strip())])
            for row in _rows(text / "t0_50k.jsonl.xz")
            if len(row["prompt"]) < LONGEST
        ],
        "services": [
            transcript([({"U": "Human", "S": "Assistant"}[who], text) for who, text in row["turns"]])
            for row in _rows(text / "sgd_dialogues.jsonl.xz")
        ],
        "stories": _stories(text / "tinystories_a.txt.gz"),
    }


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise DualHeadError(f"There is no file '{file}'. Give the folder that holds hh_rlhf and text with --data.")
    with lzma.open(file, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def _stories(file: Path) -> list[str]:
    """Pieces of whole paragraphs; nothing in the file says where a story ends."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        paragraphs = [line.strip() for line in stream if line.strip()]
    return ["\n\n".join(paragraphs[i : i + 5])[:LONGEST] for i in range(0, len(paragraphs), 5)]
