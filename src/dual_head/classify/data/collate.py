"""Token ids of examples to one batch of tensors. It knows ids and padding, and no text."""

from collections.abc import Sequence
from typing import Any

import torch

from dual_head.classify.data.tokenize import Tokenized
from dual_head.classify.head import IGNORED
from dual_head.classify.types import as_shares


class ExampleCollator:
    """Pad [input | rest] rows to one length.

        row 0   i i i | r r        pool_at [2, 1]     the last token of each input
        row 1   i i | r . .        lm_at [2, 3, 6]    places in the flat batch that predict r r r, where r is learnt

    pad_id: any id, since padding is known by its mask; side: "right" or "left"; learn: whether the reasoning head's
    positions go along. Gives input_ids and attention_mask [B, T], pool_at [B], labels ([B] or [B, K]), and with
    `learn` lm_at and lm_labels [n].
    """

    def __init__(self, pad_id: int = 0, *, side: str = "right", learn: bool = True):
        self.pad_id, self.side, self.learn = pad_id, side, learn

    def __call__(self, rows: Sequence[Tokenized]) -> dict[str, Any]:
        """Build the batch."""
        ids = [row.input_ids + (row.rest_ids if self.learn else []) for row in rows]
        longest = max(map(len, ids))
        input_ids = torch.full((len(rows), longest), self.pad_id)
        mask = torch.zeros_like(input_ids)
        pool_at, lm_at, lm_labels = [], [], []
        for i, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
            start = longest - len(tokens) if self.side == "left" else 0
            input_ids[i, start : start + len(tokens)] = torch.tensor(tokens)
            mask[i, start : start + len(tokens)] = 1
            pool_at.append(start + len(row.input_ids) - 1)
            if self.learn:
                taught = [j for j, flag in enumerate(row.learnt) if flag]
                # Position j - 1 predicts token j.
                lm_at += [i * longest + start + j - 1 for j in taught]
                lm_labels += [tokens[j] for j in taught]
        batch = {"input_ids": input_ids, "attention_mask": mask, "pool_at": torch.tensor(pool_at)}
        if self.learn or any(row.label is not None for row in rows):
            batch["labels"] = _labels(rows)
        if self.learn:
            batch["lm_at"] = torch.tensor(lm_at, dtype=torch.long)
            batch["lm_labels"] = torch.tensor(lm_labels, dtype=torch.long)
        return batch


def _labels(rows: Sequence[Tokenized]) -> torch.Tensor:
    """Classes [B], or shares [B, K] where any row has shares: a class is then a share of 1."""
    shares = [row.label for row in rows if isinstance(row.label, tuple)]
    if not shares:
        return torch.tensor([IGNORED if row.label is None else row.label for row in rows])
    none = (float(IGNORED),) * len(shares[0])
    return torch.tensor([none if row.label is None else as_shares(row.label, len(shares[0])) for row in rows])
