"""A feature cache read back: shards to pairs, pairs to the batches that training takes instead of token ids.

Files are mapped into memory, so a pair costs the reading of its own rows. It knows no method and no model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from dual_head.data import COLUMNS, LABEL, RowReport
from dual_head.data.collate import PairCollator
from dual_head.errors import DualHeadError
from dual_head.files.reading import reading
from dual_head.train.feature_cache.store import (
    ALL,
    HIDDEN,
    RESPONSE,
    Layout,
    Needs,
    layer_name,
    require_files,
    require_manifest,
    scale_name,
    unpack,
)


class FeatureCache:
    """A finished feature cache: whose features it holds, and its pairs. Errors: none there, or not finished."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = manifest = require_manifest(folder)
        if not manifest["complete"]:
            raise DualHeadError(
                f"The feature cache '{folder}' is not finished. Run the 'dual-head cache' command again."
            )
        self.layout = Layout(positions=manifest["positions"], widths=manifest["widths"], dtype=manifest["dtype"])
        self.last = manifest["backbone"]["fingerprint"]["num_layers"]  # its hidden states are "hidden" itself

    @property
    def options(self) -> dict[str, Any]:
        """Where backbone and data came from, by the names of the command line."""
        return dict(self.manifest["options"])

    @property
    def drops(self) -> dict[str, RowReport]:
        """What became of the rows that were read."""
        return {
            stage: RowReport(**{**values, "reasons": Counter(values["reasons"]), "notes": Counter(values["notes"])})
            for stage, values in self.manifest["drops"].items()
        }

    @property
    def learns_from(self) -> str:
        """What its rows are: "pairs", or "feedback", which are single replies with labels."""
        return self.manifest["learns_from"]

    def require(self, needs: Needs, method: str, *, learns_from: str) -> None:
        """Refuse a method of other rows, and guides that read more than is here."""
        if learns_from != self.learns_from:
            words = {"pairs": "pairs of replies", "feedback": "single replies with labels"}
            raise DualHeadError(
                f"The feature cache '{self.folder}' holds {words[self.learns_from]}, and '{method}' learns from "
                f"{words[learns_from]}. Write one for it: dual-head cache --method {method}."
            )
        missing = [i for i in needs.layers if i != self.last and i not in self.layout.layers]
        gaps = []
        if needs.positions == ALL and self.layout.positions == RESPONSE:
            gaps.append("the hidden states of prompts, which a guide that looks back reads")
        if missing:
            gaps.append(f"those of layers {', '.join(map(str, missing))}")
        if gaps:
            raise DualHeadError(
                f"The feature cache '{self.folder}' does not hold {', nor '.join(gaps)}. "
                f"Write one that does: dual-head cache --method {method} (with the same options of the method)."
            )

    def require_whole(self) -> None:
        """Refuse files beside the shards that are not what was written; a shard is checked when it is first read."""
        require_files(self.folder, self.manifest["files"])

    def pairs(self, part: str, needs: Needs, *, dtype: torch.dtype, by_length: bool = False) -> "FeatureSet":
        """The pairs of "train" or "held_out" with what is needed of them, in the order of the data or by length."""
        return FeatureSet(self, part, needs, dtype=dtype, by_length=by_length)


class FeatureSet(Dataset):
    """Pairs of a feature cache by number: {"hidden": [rows, d], "layers": {i: [rows, d]}, "ids", "lengths"}.

    Rows are the tokens of [prompt | chosen | rejected] where guides look back, and else what predicts each
    response token; ids are those of the same tokens, or of the response tokens predicted. Of single replies the second
    is a mismatched one, and there is a "label".
    """

    def __init__(self, cache: FeatureCache, part: str, needs: Needs, *, dtype: torch.dtype, by_length: bool):
        self.layout, self.needs, self.dtype, self.last = cache.layout, needs, dtype, cache.last
        self.labelled = cache.learns_from == "feedback"
        shards = {cache.folder / shard["file"]: shard for shard in cache.manifest["parts"][part]["shards"]}
        self._files = list(shards)
        self._open: dict[Path, Any] = {}
        self._checksums = {file: shard["sha256"] for file, shard in shards.items()}  # of files not yet read
        for file, shard in shards.items():
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise DualHeadError(f"'{file}' is cut short or missing. Run the same 'dual-head cache' command again.")
        of_shards = [self._lengths_in(file) for file in self._files]
        sizes = torch.tensor([len(lengths) for lengths in of_shards], dtype=torch.long)
        rows = [self.layout.rows(lengths) for lengths in of_shards]
        # Of every pair: its lengths, which file holds it, and where its rows begin there.
        #     shard 0 [p p c c r | p c r r]   shard 1 [p c r]        file  0 0 1     start  0 5 0
        self._lengths = torch.cat([torch.zeros(0, 3, dtype=torch.long), *of_shards])
        self._file = torch.arange(len(sizes)).repeat_interleave(sizes)
        self._first = sizes.cumsum(0) - sizes  # of every shard, the number of its first pair
        self._start = torch.cat([torch.zeros(0, dtype=torch.long), *(x.cumsum(0) - x for x in rows)])
        tokens = self._lengths.sum(1).tolist()
        order = range(len(tokens))
        self._order = sorted(order, key=tokens.__getitem__) if by_length else list(order)

    def __len__(self) -> int:
        return len(self._order)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a file is mapped anew in each process that reads it

    def pair_lengths(self) -> list[int]:
        """Tokens of each pair with its prompt once."""
        return self._lengths[self._order].sum(1).tolist()

    def response_tokens(self) -> int:
        """Tokens of all responses."""
        return int(self._lengths[:, 1:].sum())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one pair."""
        pair = self._order[index]
        shard, lengths = self._checked(self._files[self._file[pair]]), self._lengths[pair]
        rows, picks, labels = _rows_of(
            lengths.tolist(), int(self._start[pair]), self.layout.positions, self.needs.positions
        )
        hidden = self._read(shard, HIDDEN, rows, picks)
        layers = {
            i: hidden if i == self.last else self._read(shard, layer_name(i), rows, picks) for i in self.needs.layers
        }
        ids = shard.get_slice("ids")[labels].long()
        one = {"hidden": hidden, "layers": layers, "ids": ids, "lengths": lengths}
        if self.labelled:
            number = pair - int(self._first[self._file[pair]])
            one[LABEL] = shard.get_slice(LABEL)[number : number + 1]
        return one

    def _read(self, shard: Any, name: str, rows: slice, picks: Tensor | None) -> Tensor:
        x = shard.get_slice(name)[rows]
        scale = shard.get_slice(scale_name(name))[rows] if self.layout.dtype == "int8" else None
        x = unpack(x, scale, self.dtype)
        return x if picks is None else x[picks]

    def _lengths_in(self, file: Path) -> Tensor:
        with reading(f"Cannot read '{file}'", f"Run: dual-head cache --verify {file.parent}"):
            return self._shard(file).get_tensor("lengths").long()

    def _checked(self, file: Path) -> Any:
        """A shard, whose checksum is computed when the first of its pairs is read. Errors: other bytes than written."""
        if file in self._checksums:
            require_files(file.parent, {file.name: self._checksums.pop(file)})
        return self._shard(file)

    def _shard(self, file: Path) -> Any:
        if file not in self._open:
            with reading(f"Cannot read '{file}'", f"Run: dual-head cache --verify {file.parent}"):
                self._open[file] = safe_open(file, "pt")
        return self._open[file]


def _rows_of(lengths: list[int], start: int, stored: str, needed: str) -> tuple[slice, Tensor | None, slice]:
    """Which rows of a shard to read for a pair, which of those to pick, and which ids go with them.

    stored = ALL, needed = RESPONSE:   [p p p | c c | r r r]    what predicts c c r r r
                                    rows   ^ ---------- ^
                                    picks  0   1   0 3 4        the prompt's last token predicts c and r alike
    """
    prompt, chosen, rejected = lengths
    if stored in (needed, RESPONSE):
        rows = slice(start, start + (prompt if stored == ALL else 0) + chosen + rejected)
        return rows, None, rows
    first = torch.zeros(1, dtype=torch.long)
    picks = torch.cat([torch.arange(chosen), first, torch.arange(chosen + 1, chosen + rejected)])
    begin = start + prompt
    return slice(begin - 1, begin + chosen + rejected - 1), picks, slice(begin, begin + chosen + rejected)


@dataclass(frozen=True, slots=True)
class FeatureCollator:
    """Collate pairs of a `FeatureSet` into a PairBatch with "hidden" [R, T, d] and "layers" instead of input_ids.

    positions "response": all tokens to score in one row, [1, n, d]; "all": in rows as `PairCollator` lays out pairs.
    """

    positions: str

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Lay out pairs as `PairCollator` does, or one after the other."""
        batch: dict[str, Any] = _flat(pairs) if self.positions == RESPONSE else _padded(pairs)
        if LABEL in pairs[0]:
            batch["desirable"] = torch.cat([pair[LABEL] for pair in pairs])
        join = _joined if self.positions == RESPONSE else partial(_placed, batch)
        batch["hidden"] = join([pair["hidden"] for pair in pairs])
        layers = {
            i: batch["hidden"] if x is pairs[0]["hidden"] else join([pair["layers"][i] for pair in pairs])
            for i, x in pairs[0]["layers"].items()
        }
        return {**batch, "layers": layers} if layers else batch


def _flat(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """[c c r r r C R R], what predicts each response token, with no row for a prompt."""
    lengths = torch.stack([pair["lengths"] for pair in pairs])[:, 1:]  # [B, 2]
    labels = torch.cat([pair["ids"] for pair in pairs])
    row = torch.arange(lengths.numel()).repeat_interleave(lengths.flatten())
    return {"at": torch.arange(len(labels)), "labels": labels, "row": row, "counts": lengths.flatten().tolist()}


def _padded(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """[p p p | c c | r r r | P P | C | R R], as `PairBatch` has shared prompts."""
    ids = [[x.tolist() for x in pair["ids"].split(pair["lengths"].tolist())] for pair in pairs]
    batch: dict[str, Any] = {**PairCollator(0, share_prompt=True)([dict(zip(COLUMNS, x, strict=True)) for x in ids])}
    del batch["input_ids"]  # with them a model would run its decoder
    return batch


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows))[None]


def _placed(batch: dict[str, Any], rows: Sequence[Tensor]) -> Tensor:
    """Each pair's hidden states where its tokens are, [R, T, d]."""
    placed = rows[0].new_zeros(batch["parts"].numel(), rows[0].shape[1])
    for start, states in zip(batch["starts"], rows, strict=True):
        placed[start : start + len(states)] = states
    return placed.view(*batch["parts"].shape, -1)
