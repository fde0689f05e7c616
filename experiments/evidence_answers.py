"""What trained systems answer: replies at every strength with their length, divergence and scores, kept as JSONL.

Replies of one seed repeat, up to rounding. It knows models that generate and worlds that score, and neither training
nor tables.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from evidence_data import write_rows
from evidence_script import same_plan
from evidence_worlds import Asked, World
from transformers import set_seed

from dual_head import AlignedModel
from dual_head.evaluate import Decoding
from dual_head.evaluate.text_metrics import diversity
from dual_head.model.generate import end_tokens, prompt_ids
from dual_head.model.pretrained import load_tokenizer
from dual_head.model.score import reply_scalars
from dual_head.replies.sample import generate_replies, reply_lengths
from dual_head.serve.offline import THROUGHPUT, sampling_in_a_batch

ROWS = 192  # generated at a time
RUNNING_ROWS = 96  # of a running batch
Strength = float | Mapping[str, float]
Row = dict[str, Any]


def label_of(alpha: Strength) -> str:
    """A strength as tables and files name it."""
    return json.dumps(alpha) if isinstance(alpha, Mapping) else f"{alpha:g}"


def base_of(world: World) -> AlignedModel:
    """The backbone alone, as a system."""
    return AlignedModel.from_backbone(world.backbone, {}, tokenizer=load_tokenizer(world.backbone), dtype=world.dtype)


def answered(
    file: Path,
    world: World,
    asked: Sequence[Asked],
    alphas: Sequence[Strength],
    *,
    seed: int,
    model: Any,
    max_new_tokens: int | None = None,
) -> list[Row]:
    """Replies to every prompt at every strength, with their scores: rows of a file, those not there made and added.

    model: a callable that loads what answers, called only then. Errors: the file has replies of other settings.
    """
    by_id = {one.id: one for one in asked}
    settings = {"backbone": world.backbone, "dtype": world.dtype, **asdict(world.decoding)}
    same_plan(file.with_suffix(".json"), {**settings, "seed": seed, "limit": max_new_tokens})
    rows = [row for row in read_rows(file) if row["id"] in by_id]
    labels = {label_of(alpha): alpha for alpha in alphas}
    there = set(strengths_in(rows, asked))
    if missing := [alpha for label, alpha in labels.items() if label not in there]:
        tokenizer = load_tokenizer(world.backbone)
        new = replies(model(), tokenizer, asked, missing, world.decoding, seed=seed, limit=max_new_tokens)
        mixed = any(isinstance(alpha, Mapping) for alpha in alphas)
        objectives = ("overall", *world.mixed) if mixed else ("overall",)
        scores = world.score([by_id[row["id"]] for row in new], new, objectives)
        for i, row in enumerate(new):
            row["rewards"] = {name: round(values[i], 5) for name, values in scores.items()}
            _require_finite(row)
        rows = [row for row in rows if row["alpha"] in there] + new
        write_rows(file, rows)
    for row in rows:
        row["rewards"]["overall"] = world.overall(row["rewards"])
    return [row for row in rows if row["alpha"] in labels]


def strengths_in(rows: Sequence[Row], asked: Sequence[Asked]) -> list[str]:
    """The strengths, as rows name them, at which every prompt has its reply."""
    prompts: dict[str, set[str]] = {}
    for row in rows:
        prompts.setdefault(row["alpha"], set()).add(row["id"])
    return [label for label, ids in prompts.items() if ids >= {one.id for one in asked}]


def read_rows(file: Path) -> list[Row]:
    """The rows of a file of answers; none where there is no such file."""
    # Replies may hold characters that splitlines takes for ends of lines.
    return [json.loads(line) for line in file.read_text().split("\n") if line] if file.is_file() else []


def replies(
    model: AlignedModel,
    tokenizer: Any,
    asked: Sequence[Asked],
    alphas: Sequence[Strength],
    decoding: Decoding,
    *,
    seed: int,
    limit: int | None = None,
) -> list[Row]:
    """One reply to every prompt at every strength, as rows by prompt and strength."""
    decoding = replace(decoding, seed=1000 + seed, max_new_tokens=limit or decoding.max_new_tokens)
    settings = sampling_in_a_batch(model)
    if settings is None:
        rows = _in_padded_batches(model, tokenizer, asked, alphas, decoding)
    else:
        rows = _in_a_running_batch(model, tokenizer, asked, alphas, decoding, settings)
    return [rows[i, label_of(alpha)] for i in range(len(asked)) for alpha in alphas]


def _in_a_running_batch(
    model: AlignedModel,
    tokenizer: Any,
    asked: Sequence[Asked],
    alphas: Sequence[Strength],
    decoding: Decoding,
    settings: Mapping[str, float],
) -> dict[tuple[int, str], Row]:
    """Rows by number of the prompt and strength; one strength after the other, so that prompts are read once.

    A prompt has one seed at every strength: replies differ by the strength, and as little by chance as can be.
    """
    places = [(i, alpha) for alpha in alphas for i in range(len(asked))]
    ids = prompt_ids([one.prompt for one in asked], tokenizer)
    pieces = model.generate_batch(
        [ids[i] for i, _ in places],
        tokenizer=tokenizer,
        alpha=_strengths(model, [alpha for _, alpha in places]),
        **{**settings, **asdict(decoding), "seed": [decoding.seed * len(asked) + i for i, _ in places]},
        trace=True,
        settings=replace(THROUGHPUT, max_rows=RUNNING_ROWS),
    )
    rows = {}
    for (i, alpha), piece in zip(places, pieces, strict=True):
        new, traces = [token.id for token in piece.tokens], [token.trace for token in piece.tokens]
        kl, logp = sum(trace.kl for trace in traces), sum(trace.base_logp for trace in traces)
        rows[i, label_of(alpha)] = _row(asked[i], alpha, tokenizer, new, piece.finish_reason == "stop", kl, logp)
    return rows


@torch.no_grad()
def _in_padded_batches(
    model: AlignedModel,
    tokenizer: Any,
    asked: Sequence[Asked],
    alphas: Sequence[Strength],
    decoding: Decoding,
) -> dict[tuple[int, str], Row]:
    """The same with `generate`, of what a running batch cannot hold: prompts of like lengths together."""
    set_seed(decoding.seed)
    ids = prompt_ids([one.prompt for one in asked], tokenizer)
    order = sorted(range(len(asked)), key=lambda i: len(ids[i]))
    step = max(1, ROWS // len(alphas))
    rows = {}
    for start in range(0, len(order), step):
        places = [(i, alpha) for i in order[start : start + step] for alpha in alphas]
        batch = [(asked[i], alpha) for i, alpha in places]
        for (i, alpha), row in zip(places, _batch(model, tokenizer, batch, decoding), strict=True):
            rows[i, label_of(alpha)] = row
    return rows


def _strengths(model: AlignedModel, alphas: Sequence[Strength]) -> dict[str, list[float]] | None:
    """What `generate` takes as alpha: a value of each guide for every row; a number is every guide's."""
    strengths = {
        name: [alpha.get(name, 0.0) if isinstance(alpha, Mapping) else alpha for alpha in alphas]
        for name in model.guides
    }
    return strengths or None


def _batch(
    model: AlignedModel, tokenizer: Any, asked: Sequence[tuple[Asked, Strength]], decoding: Decoding
) -> list[Row]:
    strengths = _strengths(model, [alpha for _, alpha in asked])
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
        if decoding.temperature
        else {"do_sample": False}
    )
    sequences, mask, new = generate_replies(
        model,
        tokenizer,
        [one.prompt for one, _ in asked],
        alpha=strengths,
        max_new_tokens=decoding.max_new_tokens,
        **sampling,
    )
    ends = end_tokens(model)
    lengths = reply_lengths(new, ends)
    needs = ("kl", "base_logps")
    scalars = reply_scalars(model, sequences, mask, alpha=strengths, lengths=lengths, needs=needs)
    rows = []
    for i, (one, alpha) in enumerate(asked):
        ids = new[i, : int(lengths[i])].tolist()
        kl, logp = scalars["kl"][i].item(), scalars["base_logps"][i].item()
        rows.append(_row(one, alpha, tokenizer, ids, ids[-1] in ends, kl, logp))
    return rows


def _row(one: Asked, alpha: Strength, tokenizer: Any, ids: list[int], ended: bool, kl: float, logp: float) -> Row:
    """One reply of some tokens, the last its end where it ended: nats from the backbone, and its log-probability."""
    text = ids[:-1] if ended else ids
    return {
        "id": one.id,
        "of": one.of,
        "alpha": label_of(alpha),
        "reply": tokenizer.decode(text, skip_special_tokens=True),
        "tokens": len(ids),
        "finished": ended,
        "kl": round(max(kl, 0.0), 5),  # in this order NaN stays, and is refused
        "base_loss": round(-logp / len(ids), 5),
        "diversity": round(diversity(text), 5),
    }


def _require_finite(row: Row) -> None:
    odd = [name for name, value in [*row["rewards"].items(), ("kl", row["kl"])] if not math.isfinite(value)]
    if odd:
        raise ValueError(f"The reply to '{row['id']}' at alpha {row['alpha']} has no finite {odd[0]}: {row['reply']!r}")
