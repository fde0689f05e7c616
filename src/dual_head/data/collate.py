"""Token ids to the tensors of a pair batch, and the only place that knows how its rows are laid out.

It knows no tokenizer: padding only fills, and every mask comes from lengths, so that pad may be EOS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from dual_head.errors import DualHeadError

__all__ = ["PairBatch", "PairCollator", "split_sides"]


class PairBatch(TypedDict):
    """B pairs, right padded: rows 0..B-1 are prompt + chosen, and rows B..2B-1 prompt + rejected."""

    input_ids: Tensor  # [2B, T] int64
    attention_mask: Tensor  # [2B, T] int64, 1 where there is a token
    response_mask: Tensor  # [2B, T] bool, True where the token is a response's


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Collate rows of prompt_ids, chosen_ids, rejected_ids; raises DualHeadError without a pad token id."""

    pad_token_id: int

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise DualHeadError(
                "The tokenizer has no pad token. Pass pad_token_id=tokenizer.eos_token_id: it only fills."
            )

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> PairBatch:
        """Stack pairs into [2B, T], where T is the longest prompt + response."""
        sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
        starts = torch.tensor([[len(prompt)] for prompt, _ in sides])  # [2B, 1]
        ends = torch.tensor([[len(prompt) + len(response)] for prompt, response in sides])  # [2B, 1]
        position = torch.arange(int(ends.max()))  # [T]
        padding = [[self.pad_token_id] * (len(position) - int(end)) for end in ends]
        ids = [prompt + response + fill for (prompt, response), fill in zip(sides, padding, strict=True)]
        return PairBatch(
            input_ids=torch.tensor(ids),
            attention_mask=(position < ends).long(),
            response_mask=(starts <= position) & (position < ends),
        )


def split_sides(per_row: Tensor) -> tuple[Tensor, Tensor]:
    """Split [2B, ...] along the rows of a pair batch into chosen [B, ...] and rejected [B, ...]."""
    chosen, rejected = per_row.unflatten(0, (2, -1))
    return chosen, rejected
