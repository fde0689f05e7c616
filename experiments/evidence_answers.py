"""What trained systems answer: replies at every strength with their length, divergence and scores, kept as JSONL.

All strengths of a prompt are in one batch; replies of one seed repeat. It knows models that generate and worlds that
score. It knows no training and no table.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence_data import write_rows
from evidence_worlds import Asked, World
from transformers import set_seed

from dual_head import AlignedModel
from dual_head.evaluate import Decoding
from dual_head.evaluate.text_metrics import diversity
from dual_head.model.generate import encode_prompts
from dual_head.model.pretrained import load_tokenizer
from dual_head.model.score import reply_scalars
from dual_head.replies.sample import generate_replies, reply_lengths

ROWS = 192  # generated at a time
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
    """Rows of a file, made where it is not there: replies to every prompt at every strength, with their scores.

    model: a callable that loads what answers, called only then.
    """
    wanted = {(one.id, label_of(alpha)) for one in asked for alpha in alphas}
    rows = read_rows(file)
    if {(row["id"], row["alpha"]) for row in rows} == wanted:
        for row in rows:
            row["rewards"]["overall"] = world.overall(row["rewards"])
        return rows
    tokenizer = load_tokenizer(world.backbone)
    rows = replies(model(), tokenizer, asked, alphas, world.decoding, seed=seed, limit=max_new_tokens)
    by_id = {one.id: one for one in asked}
    mixed = any(isinstance(alpha, Mapping) for alpha in alphas)
    objectives = ("overall", *world.mixed) if mixed else ("overall",)
    scores = world.score([by_id[row["id"]] for row in rows], rows, objectives)
    for i, row in enumerate(rows):
        row["rewards"] = {name: round(values[i], 5) for name, values in scores.items()}
        _require_finite(row)
    write_rows(file, rows)
    return rows


def read_rows(file: Path) -> list[Row]:
    """The rows of a file of answers; none where there is no such file."""
    # Replies may hold characters that splitlines takes for ends of lines.
    return [json.loads(line) for line in file.read_text().split("\n") if line] if file.is_file() else []


@torch.no_grad()
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
    """One reply to every prompt at every strength, prompts of like lengths together, as rows by prompt and strength."""
    set_seed(1000 + seed)
    lengths = [encode_prompts([one.prompt], tokenizer)["input_ids"].shape[1] for one in asked]  # pyright: ignore[reportAttributeAccessIssue]
    order = sorted(range(len(asked)), key=lambda i: lengths[i])
    step = max(1, ROWS // len(alphas))
    found: dict[int, list[Row]] = {}
    for start in range(0, len(order), step):
        some = order[start : start + step]
        batch = [(asked[i], alpha) for i in some for alpha in alphas]
        rows = _batch(model, tokenizer, batch, decoding, limit or decoding.max_new_tokens)
        for place, i in enumerate(some):
            found[i] = rows[place * len(alphas) : (place + 1) * len(alphas)]
    return [row for i in range(len(asked)) for row in found[i]]


def _batch(
    model: AlignedModel, tokenizer: Any, asked: Sequence[tuple[Asked, Strength]], decoding: Decoding, limit: int
) -> list[Row]:
    strengths = {
        name: [alpha.get(name, 0.0) if isinstance(alpha, Mapping) else alpha for _, alpha in asked]
        for name in model.guides
    }
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
        if decoding.temperature
        else {"do_sample": False}
    )
    sequences, mask, new = generate_replies(
        model, tokenizer, [one.prompt for one, _ in asked], alpha=strengths or None, max_new_tokens=limit, **sampling
    )
    ended = (new == tokenizer.eos_token_id).any(1)
    lengths = reply_lengths(new, tokenizer.eos_token_id)
    needs = ("kl", "base_logps")
    scalars = reply_scalars(model, sequences, mask, alpha=strengths or None, lengths=lengths, needs=needs)
    rows = []
    for i, (one, alpha) in enumerate(asked):
        tokens = int(lengths[i])
        own = [token for token in new[i, :tokens].tolist() if token != tokenizer.eos_token_id]
        rows.append(
            {
                "id": one.id,
                "of": one.of,
                "alpha": label_of(alpha),
                "reply": tokenizer.decode(own, skip_special_tokens=True),
                "tokens": tokens,
                "finished": bool(ended[i]),
                "kl": round(max(0.0, scalars["kl"][i].item()), 5),
                "base_loss": round(-scalars["base_logps"][i].item() / tokens, 5),
                "diversity": round(diversity(own), 5),
            }
        )
    return rows


def _require_finite(row: Row) -> None:
    odd = [name for name, value in [*row["rewards"].items(), ("kl", row["kl"])] if not math.isfinite(value)]
    if odd:
        raise ValueError(f"The reply to '{row['id']}' at alpha {row['alpha']} has no finite {odd[0]}: {row['reply']!r}")
