"""Pairs to token ids: a prompt is tokenised once, and both responses continue its very ids.

`conversation` writes a prompt and its replies; how long they may be is decided here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from dual_head.console.gauge import gauged
from dual_head.data import COLUMNS, Cut, Dropped, Pair, RowReport
from dual_head.data.conversation import APART, Ids, write
from dual_head.errors import DualHeadError

__all__ = ["TokenizeOptions", "longest_sequence", "pair_lengths", "tokenize_pairs"]

BATCH = 512  # pairs per tokenizer call
PLAIN = "plain text, without the chat template around it: generate from such prompts with --raw"


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How long a pair may be, in tokens: prompt + longer response <= max_length.

    Prompts lose their beginning. Responses stay whole unless `truncate_responses`: then the prompt keeps up
    to half of `max_length`, the responses get the rest, and one that is cut has no EOS.
    """

    max_length: int = 1024
    max_prompt_length: int | None = None
    truncate_responses: bool = False
    append_eos: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 2 or (self.max_prompt_length is not None and self.max_prompt_length < 1):
            raise DualHeadError("max_length must be at least 2, and max_prompt_length at least 1.")


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    progress: bool = False,
) -> tuple[datasets.Dataset, RowReport]:
    """Tokenise into an in-memory Dataset of prompt_ids, chosen_ids, rejected_ids, and count what was dropped.

    Raises DualHeadError for a tokenizer without EOS, an unusable chat template, and when no pair is left.
    """
    if options.append_eos and tokenizer.eos_token_id is None:
        raise DualHeadError("The tokenizer has no EOS. Set tokenizer.eos_token, or pass append_eos=False.")
    features = datasets.Features({column: datasets.List(datasets.Value("int32")) for column in COLUMNS})
    drops, parts = RowReport(rows=len(pairs)), []
    for start in gauged(range(0, len(pairs), BATCH), "tokenising", quiet=not progress):
        batch = {f"pair {start + i}": pair for i, pair in enumerate(pairs[start : start + BATCH])}
        if rows := list(_rows(batch, tokenizer, options, drops)):
            columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
            parts.append(datasets.Dataset.from_dict(columns, features=features))
    drops.kept = sum(len(part) for part in parts)
    if not parts:
        raise DualHeadError(f"No pair is left. Raise max_length, or look at the data:\n{drops.table()}")
    return datasets.concatenate_datasets(parts), drops


def pair_lengths(rows: Any) -> list[int]:
    """Tokens of each pair with its prompt once, from tokenised rows: a Dataset, or a sequence of dicts."""
    columns = [
        rows[column] if isinstance(rows, datasets.Dataset) else [row[column] for row in rows] for column in COLUMNS
    ]
    return [sum(map(len, ids)) for ids in zip(*columns, strict=True)]


def longest_sequence(rows: Any) -> int:
    """Tokens of the longest prompt + response."""
    columns = (rows[column] for column in COLUMNS)
    return max((len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)), default=0)


def _rows(
    pairs: Mapping[str, Pair], tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, drops: RowReport
) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Yield prompt, chosen and rejected ids of a batch of pairs, each named by its location."""
    replies = [(pair.chosen, pair.rejected) for pair in pairs.values()]  # some of which may be `Cut`
    if not options.append_eos:
        replies = [(Cut(chosen), Cut(rejected)) for chosen, rejected in replies]
    exchanges = list(zip((pair.prompt for pair in pairs.values()), replies, strict=True))
    for where, (prompt, _), written in zip(pairs, exchanges, write(exchanges, tokenizer), strict=True):
        try:
            if isinstance(written, Dropped):
                raise written
            if APART in written.notes:
                raise DualHeadError(
                    "With an answer, the chat template no longer begins with its own prompt "
                    f"(...{tokenizer.decode(written.prompt[-20:])!r}), so no response can be told from it. Give "
                    "tokenizer.chat_template a generation prompt that begins the assistant's turn, or set it to None "
                    "for plain transcripts."
                )
            drops.notes.update(written.notes)
            if isinstance(prompt, str) and tokenizer.chat_template:
                drops.notes[PLAIN] += 1
            if any(ids in ([], [tokenizer.eos_token_id]) for ids in written.replies):
                raise Dropped("empty reply")
            yield _fit(written.prompt, list(written.replies), tokenizer.bos_token_id, options)
        except Dropped as reason:
            drops.drop(str(reason), where)


def _cut_left(ids: Ids, length: int, bos: Any) -> Ids:
    """The last `length` ids, where a BOS stays the first."""
    start = ids[:1] if ids[:1] == [bos] else []
    return ids if len(ids) <= length else start + ids[len(ids) - length + len(start) :]


def _fit(prompt: Ids, responses: list[Ids], bos: Any, options: TokenizeOptions) -> tuple[Ids, Ids, Ids]:
    """Prompt, chosen and rejected ids within the lengths of `options`."""
    if not prompt:
        raise Dropped("empty prompt")
    if options.max_prompt_length is not None:
        prompt = _cut_left(prompt, options.max_prompt_length, bos)
    if options.truncate_responses:
        room = options.max_length - min(len(prompt), options.max_length // 2)
        responses = [ids[:room] for ids in responses]
    chosen, rejected = responses
    if chosen == rejected:
        raise Dropped("identical after tokenising")
    room = options.max_length - max(len(chosen), len(rejected))
    # A prompt needs a token beside BOS.
    if room < min(len(prompt), 1 + (prompt[:1] == [bos])):
        raise Dropped("too long")
    return _cut_left(prompt, room, bos), chosen, rejected
