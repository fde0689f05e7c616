"""Token ids to the tensors of a pair batch, and the only place that knows how its rows are laid out.

A prompt may be written once for both responses, [prompt | chosen | rejected], or once for each. It knows no
tokenizer: padding only fills, and every index comes from lengths, so that pad may be EOS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from dual_head.errors import DualHeadError

__all__ = ["PADDING", "PROMPT", "PairBatch", "PairCollator", "split_sides"]

PADDING, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2  # what a token is part of
NO_TOKEN = -1  # of a sequence that is shorter than the others


class PairBatch(TypedDict):
    """B pairs in R rows of T tokens, right padded, and the n response tokens to score, pair by pair.

    Rows are the B pairs where prompts are shared; else 2B, the chosen sequence of each pair before the rejected one.
    """

    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor  # [R, T] int64, of a token in its own sequence
    at: Tensor  # [n] int64, which of the R T tokens predicts it
    labels: Tensor  # [n] int64
    row: Tensor  # [n] int64, 2 i for the chosen response of pair i, 2 i + 1 for the rejected one
    counts: list[int]  # [2B], how many of the n each response has
    # Where prompts are shared:
    parts: NotRequired[Tensor]  # [R, T] int64: prompt 0, chosen 1, rejected 2, padding -1
    # [2B, L] int64, which of the R T tokens each sequence consists of; on the left NO_TOKEN, so that all end together
    sequences: NotRequired[Tensor]
    within: NotRequired[Tensor]  # [n] int64, as `at`, among the 2B L tokens of sequences
    tail: NotRequired[int]  # in how many last tokens of sequences all of `within` are


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Collate rows of prompt_ids, chosen_ids, rejected_ids; raises DualHeadError without a pad token id.

    share_prompt: write a prompt once for both responses. Whoever reads such rows needs masks made from `parts`.
    """

    pad_token_id: int
    share_prompt: bool = False

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise DualHeadError(
                "The tokenizer has no pad token. Pass pad_token_id=tokenizer.eos_token_id: it only fills."
            )

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> PairBatch:
        """Lay out pairs in rows as long as the longest."""
        lengths = torch.tensor([[len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")] for row in rows])
        both = [row["prompt_ids"] + row[f"{side}_ids"] for row in rows for side in ("chosen", "rejected")]
        layout = torch.stack([lengths[:, [0, 1]], lengths[:, [0, 2]]], 1).flatten(0, 1)  # [2B, prompt and response]
        scored = _scored(layout, max(map(len, both)))
        ids = (
            [row["prompt_ids"] + row["chosen_ids"] + row["rejected_ids"] for row in rows] if self.share_prompt else both
        )
        width = max(map(len, ids))
        input_ids = torch.tensor([row + [self.pad_token_id] * (width - len(row)) for row in ids])
        parts = _parts(lengths if self.share_prompt else layout, width)
        batch: Any = {
            "input_ids": input_ids,
            "position_ids": _positions(lengths if self.share_prompt else layout, width).masked_fill(
                parts == PADDING, 0
            ),
            "at": scored,
            "row": torch.arange(2 * len(lengths)).repeat_interleave(layout[:, 1]),
            "counts": lengths[:, 1:].flatten().tolist(),
        }
        following = scored + 1
        if self.share_prompt:
            sequences, shift = _sequences(lengths, width, max(map(len, both)))
            within = scored + shift.repeat_interleave(layout[:, 1])
            batch |= {"parts": parts, "sequences": sequences, "within": within, "at": sequences.flatten()[within]}
            batch["tail"] = int(lengths[:, 1:].max()) + 1  # a response's tokens, and what predicts the first of them
            following = sequences.flatten()[within + 1]
        return batch | {"labels": input_ids.flatten()[following]}


def _parts(layout: Tensor, width: int) -> Tensor:
    """What each token is part of, [R, T], from the lengths of the parts [R, parts]."""
    ends = layout.cumsum(1)  # [R, parts]
    part = (torch.arange(width)[None, :, None] >= ends[:, None, :]).sum(-1)
    return part.masked_fill(part == layout.shape[1], PADDING)


def _positions(layout: Tensor, width: int) -> Tensor:
    """Positions in a token's own sequence, [R, T]: every response goes on where the prompt ends."""
    at, starts = torch.arange(width).expand(len(layout), width), layout.cumsum(1) - layout
    if layout.shape[1] == 3:  # the rejected response, past the chosen one
        at = at - layout[:, 1:2] * (at >= starts[:, 2:])
    return at


def _scored(layout: Tensor, width: int) -> Tensor:
    """What predicts each response token, [n] of the S width tokens of sequences [prompt | response]; layout [S, 2]."""
    at, ends = torch.arange(width), layout.cumsum(1)
    return ((at >= ends[:, :1] - 1) & (at < ends[:, 1:] - 1)).flatten().nonzero().flatten()


def _sequences(lengths: Tensor, width: int, longest: int) -> tuple[Tensor, Tensor]:
    """Which of the B width tokens of rows [prompt | chosen | rejected] make each sequence, and how far it is shifted.

    [2B, longest], NO_TOKEN on the left; and [2B], so that all sequences end at the right.
    """
    prompt, chosen, rejected = lengths[:, None, :, None].unbind(2)  # each [B, 1, 1]
    shift = longest - prompt - torch.cat([chosen, rejected], 1)  # [B, 2, 1]
    at = torch.arange(longest) - shift
    passed = torch.tensor([0, 1])[:, None] * chosen * (at >= prompt)  # [B, 2, L], tokens of the other response
    own = torch.arange(len(lengths))[:, None, None] * width + at + passed
    return own.masked_fill(at < 0, NO_TOKEN).flatten(0, 1), shift.flatten()


def split_sides(per_row: Tensor) -> tuple[Tensor, Tensor]:
    """Split [2B, ...] along the responses of B pairs into chosen [B, ...] and rejected [B, ...]."""
    chosen, rejected = per_row.unflatten(0, (-1, 2)).unbind(1)
    return chosen, rejected
