"""Token ids to the tensors of a batch of pairs or single replies: how its rows are laid out is known here alone.

A prompt may be written once for both responses, [prompt | chosen | rejected], and such pairs one after the other in a
row; or once for each. Padding only fills, and every index comes from lengths, so that pad may be EOS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from dual_head.data import LABEL, columns_of
from dual_head.errors import DualHeadError
from dual_head.ops.masks import PADDING, PARTS

__all__ = ["PairBatch", "PairCollator"]

REJECTED = PARTS - 1  # after the prompt and the chosen response
# What a token costs by itself, in others that it looks at: 6 d of a small Llama, whose attention weighs most.
ALONE = 4096
NO_TOKEN = -1  # of a sequence that is shorter than the others


class PairBatch(TypedDict):
    """B pairs in R rows of T tokens, right padded, and the n response tokens to score, pair by pair.

    Where prompts are shared, a row holds one pair or several; else there are 2B rows, the chosen sequence of each pair
    before the rejected one. A single reply lies where a chosen one would, and its mismatched reply where a rejected one
    would. Of two pairs:

        apart    [p p p c c .]          shared   [p p p | c c | r r r | P P | C | R R]      input_ids
                 [p p p r r r]                    0 1 2   3 4   3 4 5   0 1   2   2 3       position_ids
                 [P P C . . .]                    0 0 0   1 1   2 2 2   3 3   4   5 5       parts
                 [P P R R . .]                        at: 2 3   2 5 6       9     9 11      predicts c c r r r C R R
    """

    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor  # [R, T] int64, of a token in its own sequence
    at: Tensor  # [n] int64, which of the R T tokens predicts it
    labels: Tensor  # [n] int64
    row: Tensor  # [n] int64, 2 i for the chosen response of pair i, 2 i + 1 for the rejected one
    counts: list[int]  # [2B], how many of the n each response has
    desirable: NotRequired[Tensor]  # [B] bool, the labels of single replies
    # Of shared prompts:
    parts: NotRequired[Tensor]  # [R, T] int64: 3 k, 3 k + 1, 3 k + 2 for the parts of a row's k-th pair, or PADDING
    starts: NotRequired[list[int]]  # [B], which of the R T tokens is the first of each pair; the others follow it
    # [2B, L] int64, which of the R T tokens each sequence consists of; on the left NO_TOKEN, so that all end together
    sequences: NotRequired[Tensor]
    within: NotRequired[Tensor]  # [n] int64, as `at`, among the 2B L tokens of sequences
    tail: NotRequired[int]  # in how many last tokens of sequences all of `within` are


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Collate rows of prompt_ids, chosen_ids, rejected_ids, or of prompt_ids, completion_ids, mismatched_ids, label.

    Raises DualHeadError without a pad token id.
    share_prompt: write a prompt once for both responses, and pairs one after the other where that saves padding; a
    decoder needs masks made from `parts` for such rows.
    """

    pad_token_id: int
    share_prompt: bool = False

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise DualHeadError(
                "The tokenizer has no pad token. Pass pad_token_id=tokenizer.eos_token_id: it only fills."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> PairBatch:
        """Lay out pairs in rows."""
        columns = columns_of(rows[0])
        lengths = torch.tensor([[len(row[column]) for column in columns] for row in rows])
        sides = torch.stack([lengths[:, [0, 1]], lengths[:, [0, 2]]], 1).flatten(0, 1)  # [2B, prompt and response]
        longest = int(sides.sum(1).max())
        scored = _scored(sides, longest)
        batch: Any = {
            "row": torch.arange(2 * len(lengths)).repeat_interleave(sides[:, 1]),
            "counts": lengths[:, 1:].flatten().tolist(),
        }
        if LABEL in rows[0]:
            batch["desirable"] = torch.tensor([row[LABEL] for row in rows])
        prompt, first, second = columns
        if not self.share_prompt:
            texts = [row[prompt] + row[column] for row in rows for column in (first, second)]
            batch |= self._laid_out(texts, sides, _apart(len(texts), longest))
            del batch["parts"]
            return batch | {"at": scored, "labels": batch["input_ids"].flatten()[scored + 1]}
        layout = _packed(lengths.sum(1).tolist())
        texts = [row[prompt] + row[first] + row[second] for row in rows]
        sequences, shift = _sequences(lengths, torch.tensor(layout.starts), longest)
        within = scored + shift.repeat_interleave(sides[:, 1])
        batch |= self._laid_out(texts, lengths, layout)
        return batch | {
            "starts": layout.starts,
            "sequences": sequences,
            "within": within,
            "at": sequences.flatten()[within],
            "labels": batch["input_ids"].flatten()[sequences.flatten()[within + 1]],
            "tail": int(lengths[:, 1:].max()) + 1,  # a response's tokens, and what predicts the first of them
        }

    def _laid_out(self, texts: list[list[int]], lengths: Tensor, layout: "_Rows") -> dict[str, Tensor]:
        """Texts of lengths [texts, parts], each where it starts: ids, positions and parts, [R, T]."""
        whole, starts = lengths.sum(1), torch.tensor(layout.starts)
        text = torch.arange(len(texts)).repeat_interleave(whole)
        part = torch.arange(lengths.shape[1]).repeat(len(texts)).repeat_interleave(lengths.flatten())
        inside = torch.arange(len(text)) - (whole.cumsum(0) - whole)[text]
        at = starts[text] + inside

        def rows(values: Tensor, filler: int) -> Tensor:
            empty = torch.full((layout.count * layout.width,), filler)
            return empty.index_copy(0, at, values).view(layout.count, layout.width)

        return {
            "input_ids": rows(torch.tensor([token for ids in texts for token in ids]), self.pad_token_id),
            # A rejected response goes on where the prompt ends, past the chosen one.
            "position_ids": rows(inside - lengths[text, 1] * (part == REJECTED), 0),
            "parts": rows(part + PARTS * torch.tensor(layout.places)[text], PADDING),
        }


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of `width` tokens: which of all tokens begins each text, and how many texts precede it in its row.

    [a a a b b .]
    [c c c c . .]    count 2, width 6, starts a 0, b 3, c 6, places a 0, b 1, c 0
    """

    count: int
    width: int
    starts: list[int]
    places: list[int]


def _apart(texts: int, width: int) -> _Rows:
    """A row for each."""
    return _Rows(texts, width, [i * width for i in range(texts)], [0] * texts)


def _packed(lengths: list[int]) -> _Rows:
    """Rows about as long as the longest text, twice or four times as long, whichever a decoder runs in least time.

    Padding costs what tokens cost; longer rows hold less of it, and attention grows with their length.
    """
    total, longest = sum(lengths), max(lengths)
    layouts = [_balanced(lengths, -(-total // (times * longest))) for times in (1, 2, 4)]
    return min(layouts, key=lambda rows: rows.count * rows.width * (ALONE + rows.width))


def _balanced(lengths: list[int], count: int) -> _Rows:
    """The longest text first, each into the row that has the fewest tokens so far."""
    rows, texts = [(0, row) for row in range(count)], [0] * count  # tokens of each row, and its texts
    offsets, places = [(0, 0)] * len(lengths), [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, row = offsets[i] = rows[0]
        places[i] = texts[row]
        texts[row] += 1
        heapreplace(rows, (tokens + lengths[i], row))
    width = max(tokens for tokens, _ in rows)
    return _Rows(count, width, [row * width + tokens for tokens, row in offsets], places)


def _scored(layout: Tensor, width: int) -> Tensor:
    """What predicts each response token, [n] of the S width tokens of sequences [prompt | response]; layout [S, 2]."""
    at, ends = torch.arange(width), layout.cumsum(1)
    return ((at >= ends[:, :1] - 1) & (at < ends[:, 1:] - 1)).flatten().nonzero().flatten()


def _sequences(lengths: Tensor, starts: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Which tokens make each sequence, where each [prompt | chosen | rejected] starts, and how far it is shifted.

    [2B, longest], NO_TOKEN on the left; and [2B], so that all sequences end at the right. Of a pair at 0, longest 6:

        row 0 1 2 | 3 4 | 5 6 7        chosen    . 0 1 2 3 4    shift 1
            p p p | c c | r r r        rejected  0 1 2 5 6 7    shift 0
    """
    prompt, chosen, rejected = lengths[:, None, :, None].unbind(2)  # each [B, 1, 1]
    shift = longest - prompt - torch.cat([chosen, rejected], 1)  # [B, 2, 1]
    at = torch.arange(longest) - shift
    skipped = torch.tensor([0, 1])[:, None] * chosen * (at >= prompt)  # [B, 2, L], tokens of the chosen response
    positions = starts[:, None, None] + at + skipped
    return positions.masked_fill(at < 0, NO_TOKEN).flatten(0, 1), shift.flatten()
