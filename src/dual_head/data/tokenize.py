"""Pairs and single replies to token ids: a prompt is tokenised once, and its replies continue its very ids.

`conversation` writes a prompt and its replies; how long they may be is decided here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from dual_head.console.gauge import gauged
from dual_head.data import COLUMNS, FEEDBACK_COLUMNS, LABEL, Cut, Dropped, Feedback, Pair, Prompt, RowReport, columns_of
from dual_head.data.conversation import APART, Ids, write
from dual_head.errors import DualHeadError

__all__ = ["TokenizeOptions", "longest_sequence", "pair_lengths", "tokenize_feedback", "tokenize_pairs"]

BATCH = 512  # pairs per tokenizer call
PLAIN = "plain text, without the chat template around it: generate from such prompts with --raw"
SAME_PROMPT = "compared with another reply to its own prompt, which has over half of all rows"


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
    exchanges = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    drops, parts = RowReport(rows=len(pairs)), []
    for batch in _batches(exchanges, "pair", tokenizer, options, drops, progress=progress):
        parts.append(_dataset(COLUMNS, *map(list, zip(*batch.values(), strict=True))))
    return _whole(parts, drops, "pair")


def tokenize_feedback(
    rows: Sequence[Feedback],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    progress: bool = False,
) -> tuple[datasets.Dataset, RowReport]:
    """Tokenise single replies into an in-memory Dataset of prompt_ids, completion_ids, mismatched_ids and label.

    mismatched_ids: the reply to another prompt, cut to the length that is left, from which a loss estimates how far the
    policy is from the backbone. Each reply is given to one other row. Raises DualHeadError as `tokenize_pairs` does.
    """
    exchanges = [(row.prompt, (row.completion,)) for row in rows]
    drops, prompts, replies, labels = RowReport(rows=len(rows)), [], [], []
    for batch in _batches(exchanges, "reply", tokenizer, options, drops, progress=progress):
        for i, (prompt, reply) in batch.items():
            prompts.append(prompt)
            replies.append(reply)
            labels.append(rows[i].label)
    others = _of_other_prompts(prompts)
    if same := sum(prompts[i] == prompts[other] for i, other in enumerate(others)):
        drops.notes[SAME_PROMPT] += same
    mismatched = [replies[other][: options.max_length - len(prompts[i])] for i, other in enumerate(others)]
    parts = [_dataset((*FEEDBACK_COLUMNS, LABEL), prompts, replies, mismatched, labels)] if prompts else []
    return _whole(parts, drops, "reply")


def _of_other_prompts(prompts: Sequence[Ids]) -> list[int]:
    """For every row another one, each once, whose prompt is another, unless one prompt has more than half of all rows.

    Rows of one prompt stand together, and every row takes the one so many before as the most frequent prompt has rows:

        a a b c c, most 2      a <- c   a <- c   b <- a   c <- a   c <- b
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(i)
    order = [i for rows in rows_of.values() for i in rows]
    most = min(max(map(len, rows_of.values()), default=0), max(1, len(prompts) // 2))
    others = [0] * len(order)
    for at, i in enumerate(order):
        others[i] = order[at - most]
    return others


def _dataset(names: Sequence[str], *columns: list[Any]) -> datasets.Dataset:
    """Columns of token ids, and the label where there is one."""
    ids, label = datasets.List(datasets.Value("int32")), datasets.Value("bool")
    features = datasets.Features({name: label if name == LABEL else ids for name in names})
    return datasets.Dataset.from_dict(dict(zip(names, columns, strict=True)), features=features)


def _whole(parts: list[datasets.Dataset], drops: RowReport, noun: str) -> tuple[datasets.Dataset, RowReport]:
    """All rows, counted. Errors: there is none."""
    drops.kept = sum(len(part) for part in parts)
    if not parts:
        raise DualHeadError(f"No {noun} is left. Raise max_length, or look at the data:\n{drops.table()}")
    return datasets.concatenate_datasets(parts), drops


def pair_lengths(rows: Any) -> list[int]:
    """Tokens of each row with its prompt once, from tokenised rows: a Dataset, or a sequence of dicts."""
    if isinstance(rows, datasets.Dataset):
        columns = [rows[column] for column in columns_of(rows.column_names)]
    else:
        columns = [[row[column] for row in rows] for column in columns_of(rows[0] if rows else ())]
    return [sum(map(len, ids)) for ids in zip(*columns, strict=True)]


def longest_sequence(rows: Any) -> int:
    """Tokens of the longest prompt + response."""
    columns = (rows[column] for column in columns_of(rows.column_names))
    return max((len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)), default=0)


def _batches(
    exchanges: Sequence[tuple[Prompt, tuple[str, ...]]],
    noun: str,
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    drops: RowReport,
    *,
    progress: bool,
) -> Iterator[dict[int, list[Ids]]]:
    """Yield batches of {number of an exchange: ids of its prompt and of each reply}, less those that are dropped."""
    if options.append_eos and tokenizer.eos_token_id is None:
        raise DualHeadError("The tokenizer has no EOS. Set tokenizer.eos_token, or pass append_eos=False.")
    for start in gauged(range(0, len(exchanges), BATCH), "tokenising", quiet=not progress):
        batch = exchanges[start : start + BATCH]
        if rows := dict(_rows(batch, start, noun, tokenizer, options, drops)):
            yield rows


def _rows(
    exchanges: Sequence[tuple[Prompt, tuple[str, ...]]],
    start: int,
    noun: str,
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    drops: RowReport,
) -> Iterator[tuple[int, list[Ids]]]:
    """Yield the number of an exchange, from `start` on, and the ids of its prompt and replies."""
    if not options.append_eos:
        exchanges = [(prompt, tuple(map(Cut, replies))) for prompt, replies in exchanges]
    for i, ((prompt, _), written) in enumerate(zip(exchanges, write(exchanges, tokenizer), strict=True), start):
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
            yield i, _fit(written.prompt, list(written.replies), tokenizer.bos_token_id, options)
        except Dropped as reason:
            drops.drop(str(reason), f"{noun} {i}")


def _cut_left(ids: Ids, length: int, bos: Any) -> Ids:
    """The last `length` ids, where a BOS stays the first."""
    start = ids[:1] if ids[:1] == [bos] else []
    return ids if len(ids) <= length else start + ids[len(ids) - length + len(start) :]


def _fit(prompt: Ids, responses: list[Ids], bos: Any, options: TokenizeOptions) -> list[Ids]:
    """The ids of a prompt and its responses within the lengths of `options`."""
    if not prompt:
        raise Dropped("empty prompt")
    if options.max_prompt_length is not None:
        prompt = _cut_left(prompt, options.max_prompt_length, bos)
    if options.truncate_responses:
        room = options.max_length - min(len(prompt), options.max_length // 2)
        responses = [ids[:room] for ids in responses]
    if len(responses) == 2 and responses[0] == responses[1]:
        raise Dropped("identical after tokenising")
    room = options.max_length - max(map(len, responses))
    # A prompt needs a token beside BOS.
    if room < min(len(prompt), 1 + (prompt[:1] == [bos])):
        raise Dropped("too long")
    return [_cut_left(prompt, room, bos), *responses]
