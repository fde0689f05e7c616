"""Pairs through a backbone to shards: which are missing, and each of them written alike by any process.

A shard is a fixed number of pairs, and its batches are made of those alone, so that neither other processes nor an
interruption show in its bytes. It knows a backbone and token ids; no method, and nothing of training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dual_head.backbone.decoder import Backbone
from dual_head.data import LABEL, columns_of
from dual_head.data.collate import PairBatch, PairCollator
from dual_head.errors import DualHeadError
from dual_head.ops.masks import additive, branch_mask
from dual_head.train.feature_cache.store import (
    ALL,
    HIDDEN,
    LENGTH_BYTES,
    Layout,
    Shard,
    pack,
    pairs_digest,
    read_record,
    shard_name,
)


@dataclass(frozen=True)
class Task:
    """One shard to be: pairs start, start + 1, ... of a part; shard: the record of the one that is whole already."""

    part: str
    index: int
    start: int
    stop: int
    rows: int
    data: str
    shard: Shard | None

    @property
    def name(self) -> str:
        """What its files are called."""
        return shard_name(self.part, self.index)


@dataclass
class Plan:
    """Every shard of a cache, and what it takes to write those that are missing."""

    layout: Layout
    tasks: list[Task] = field(default_factory=list)

    @property
    def missing(self) -> list[Task]:
        """What is left to write."""
        return [task for task in self.tasks if task.shard is None]

    def bytes(self, tasks: Sequence[Task]) -> int:
        """What shards take on a disk, without their headers."""
        return sum(task.rows * self.layout.row_bytes + (task.stop - task.start) * LENGTH_BYTES for task in tasks)


def plan_shards(folder: Path | None, parts: dict[str, Any], layout: Layout, *, pairs_per_shard: int) -> Plan:
    """Divide tokenised pairs into shards, and find those that are there.

    folder: None where all are to be written anew; parts: {"train": rows, "held_out": rows}, each a Dataset.
    Errors: a shard that is there of other pairs.
    """
    plan = Plan(layout)
    for part, rows in parts.items():
        count = -(-len(rows) // pairs_per_shard)
        for index in range(count):
            start = index * pairs_per_shard
            plan.tasks.append(_task(folder, part, index, pairs_of(rows, start, start + pairs_per_shard), start, layout))
        if folder and read_record(folder, shard_name(part, count)) is not None:
            raise _other(folder, part, count * pairs_per_shard)
    return plan


def _task(folder: Path | None, part: str, index: int, pairs: list[dict[str, Any]], start: int, layout: Layout) -> Task:
    data = pairs_digest(pairs)
    shard = read_record(folder, shard_name(part, index)) if folder else None
    if folder and shard and shard.data != data:
        # The last shard of a data set that has grown since is written again, longer.
        if shard.pairs >= len(pairs) or pairs_digest(pairs[: shard.pairs]) != shard.data:
            raise _other(folder, part, start)
        shard = None
    if folder and shard and not _is_whole(folder / shard.file, shard):
        shard = None
    rows = int(layout.rows(_lengths(pairs)).sum())
    return Task(part, index, start, start + len(pairs), rows, data, shard)


def _is_whole(file: Path, shard: Shard) -> bool:
    return file.is_file() and file.stat().st_size == shard.bytes


def _other(folder: Path, part: str, start: int) -> DualHeadError:
    return DualHeadError(
        f"The feature cache '{folder}' holds more or other pairs than the data now have (data: {part} pairs from "
        f"{start + 1} on). Pairs may only be added at the end. Choose another --output_dir, or add --restart "
        "to write it anew."
    )


def pairs_of(rows: Any, start: int, stop: int) -> list[dict[str, Any]]:
    """Tokenised pairs start, ..., stop - 1 of a Dataset, or single replies with their labels."""
    columns = rows[start:stop]
    names = (*columns_of(columns), *([LABEL] if LABEL in columns else []))
    return [dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)]


def _lengths(pairs: Sequence[dict[str, Any]]) -> Tensor:
    return torch.tensor([[len(pair[column]) for column in columns_of(pair)] for pair in pairs])


@torch.no_grad()
def shard_of(
    backbone: Backbone,
    pairs: Sequence[dict[str, Any]],
    layout: Layout,
    *,
    share_prompt: bool,
    batch_tokens: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """The tensors of one shard: rows of every pair in order, ids and lengths; labels of single replies."""
    lengths = _lengths(pairs)
    rows = layout.rows(lengths)
    starts = (rows.cumsum(0) - rows).tolist()
    tensors: dict[str, Tensor] = {}
    ids = torch.empty(int(rows.sum()), dtype=torch.int32)
    collate = PairCollator(0, share_prompt=share_prompt)
    for batch_pairs in _batches(lengths.sum(1).tolist(), batch_tokens):
        batch = collate([pairs[i] for i in batch_pairs])
        outputs = _run(backbone, batch, layout)
        # From the tokens of the batch, [p p p | c c | r r r] each pair, to the rows of the shard.
        tokens = torch.cat(_tokens_of(batch, lengths[batch_pairs], layout))
        target = torch.cat([torch.arange(starts[i], starts[i] + int(rows[i])) for i in batch_pairs])
        ids[target] = torch.cat([_ids(pairs[i], layout) for i in batch_pairs])
        for name, x in outputs.items():
            for key, packed in pack(name, x[tokens.to(x.device)], layout.dtype).items():
                if key not in tensors:
                    tensors[key] = torch.empty(len(ids), *packed.shape[1:], dtype=packed.dtype)
                tensors[key][target] = packed.cpu()
        on_rows(len(target))
    labels = {LABEL: torch.tensor([pair[LABEL] for pair in pairs])} if LABEL in pairs[0] else {}
    return {**tensors, "ids": ids, "lengths": lengths.int(), **labels}


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Pairs of about the same length together, longest first, at most so many tokens with padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _run(backbone: Backbone, batch: PairBatch, layout: Layout) -> dict[str, Tensor]:
    """Hidden states of a batch by the names they are stored under, each [R T, d]."""
    device: Any = backbone.lm.get_input_embeddings().weight.device
    parts = batch.get("parts")
    mask = None if parts is None else additive(branch_mask(parts.to(device)), backbone.lm.dtype)
    output, states = backbone(
        batch["input_ids"].to(device),
        attention_mask=mask,
        position_ids=batch["position_ids"].to(device),
        layers=tuple(layout.layers),
    )
    outputs = {HIDDEN: output.last_hidden_state, **{name: states[i] for i, name in layout.layers.items()}}
    for name, x in outputs.items():
        if not x.isfinite().all():
            raise DualHeadError(
                f"The backbone gives NaN or infinity ({name}), which no guide can be trained on. Load it in another "
                "dtype with --backbone_dtype float32 or bfloat16."
            )
    return {name: x.flatten(0, 1) for name, x in outputs.items()}


def _tokens_of(batch: PairBatch, lengths: Tensor, layout: Layout) -> list[Tensor]:
    """Which of the R T tokens of a batch are each pair's rows.

    RESPONSE: what predicts a response token. ALL: every token once, where prompts are apart the first one alone:

        [p p p c c .]     rows  p p p c c r r r
        [. . . r r r]
    """
    if layout.positions != ALL:
        return list(batch["at"].split(lengths[:, 1:].sum(1).tolist()))
    if "starts" in batch:
        spans = zip(batch["starts"], lengths.sum(1).tolist(), strict=True)
        return [torch.arange(start, start + tokens) for start, tokens in spans]
    width, positions = batch["input_ids"].shape[1], []
    for i, (prompt, chosen, rejected) in enumerate(lengths.tolist()):
        first, second = 2 * i * width, (2 * i + 1) * width + prompt
        positions.append(
            torch.cat([torch.arange(first, first + prompt + chosen), torch.arange(second, second + rejected)])
        )
    return positions


def _ids(pair: dict[str, Any], layout: Layout) -> Tensor:
    names = columns_of(pair)[0 if layout.positions == ALL else 1 :]
    return torch.tensor([token for name in names for token in pair[name]], dtype=torch.int32)
