"""Preference data: rows of any source to pairs, pairs to token ids, token ids to batches.

sources  where rows come from         files  how one file is read          turns  what a row says
formats  rows to pairs                conversation, tokenize  pairs to ids  collate  ids to tensors
"""

from dual_head.data.types import (
    COLUMNS,
    Cut,
    Dropped,
    Message,
    Pair,
    Prompt,
    RowReport,
    is_held_out,
    rows_digest,
    split_by_prompt,
)

__all__ = [
    "COLUMNS",
    "Cut",
    "Dropped",
    "Message",
    "Pair",
    "Prompt",
    "RowReport",
    "is_held_out",
    "rows_digest",
    "split_by_prompt",
]
