"""Preference data: rows of any source to pairs or single replies, these to token ids, token ids to batches.

sources  where rows come from         files  how one file is read           turns  what a row says
formats, load  rows to pairs          conversation, tokenize  pairs to ids  collate  ids to tensors
"""

from dual_head.data.types import (
    COLUMNS,
    FEEDBACK_COLUMNS,
    LABEL,
    Cut,
    Dropped,
    Feedback,
    Message,
    Pair,
    Prompt,
    RowReport,
    columns_of,
    is_held_out,
    rows_digest,
    split_by_prompt,
)

__all__ = [
    "COLUMNS",
    "FEEDBACK_COLUMNS",
    "LABEL",
    "Cut",
    "Dropped",
    "Feedback",
    "Message",
    "Pair",
    "Prompt",
    "RowReport",
    "columns_of",
    "is_held_out",
    "rows_digest",
    "split_by_prompt",
]
