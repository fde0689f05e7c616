"""Pairs to token ids: a prompt is tokenised once, and both responses continue its very ids.

This module knows tokenizers and chat templates. It knows no file format, no tensor and no padding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import datasets
from jinja2 import TemplateError
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from dual_head.data import Dropped, Drops, Message, Pair
from dual_head.errors import DualHeadError

__all__ = ["COLUMNS", "TokenizeOptions", "first_ids", "longest_sequence", "pair_lengths", "render", "tokenize_pairs"]

Ids = list[int]
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
BATCH = 512  # pairs per tokenizer call

_SPEAKERS = {"system": "\n\n", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}


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


@dataclass(frozen=True, slots=True)
class _Texts:
    prompt: str
    replies: tuple[str, str]  # chosen, rejected: each continues the prompt character by character
    specials: bool  # whether the tokenizer's special tokens go before the prompt


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt text of a conversation: the tokenizer's chat template, or HH-RLHF's transcript without one.

    Transcript: "\\n\\nHuman: ...\\n\\nAssistant:", where a system message is a plain paragraph.
    """
    if tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    turns = (_SPEAKERS[message["role"]] + message["content"] for message in messages)
    return "".join(turns) + "\n\nAssistant:"


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    progress: bool = False,
) -> tuple[datasets.Dataset, Drops]:
    """Tokenise into an in-memory Dataset of prompt_ids, chosen_ids, rejected_ids, and count what was dropped.

    Raises DualHeadError for a tokenizer without EOS, an unusable chat template, and when no pair is left.
    """
    if options.append_eos and tokenizer.eos_token_id is None:
        raise DualHeadError("The tokenizer has no EOS. Set tokenizer.eos_token, or pass append_eos=False.")
    features = datasets.Features({column: datasets.List(datasets.Value("int32")) for column in COLUMNS})
    drops, parts = Drops(rows=len(pairs)), []
    for start in track(range(0, len(pairs), BATCH), "tokenising", disable=not progress):
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
    pairs: Mapping[str, Pair], tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, drops: Drops
) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Yield prompt, chosen and rejected ids of a batch of pairs, each named by its location."""
    batch: dict[str, _Texts] = {}
    for where, pair in pairs.items():
        try:
            batch[where] = _texts(pair, tokenizer)
        except Dropped as reason:
            drops.drop(str(reason), where)
    triples = [(t.prompt, t.prompt + t.replies[0], t.prompt + t.replies[1]) for t in batch.values()]
    ids = _ids([text for triple in triples for text in triple], tokenizer)
    first = first_ids(tokenizer)
    for (where, texts), alone, *wholes in zip(batch.items(), ids[0::3], ids[1::3], ids[2::3], strict=True):
        try:
            replies = zip(wholes, texts.replies, strict=True)
            responses = [_response(alone, whole, text, tokenizer, drops) for whole, text in replies]
            if options.append_eos:
                responses = [_ended(response, tokenizer.eos_token_id) for response in responses]
            prompt = first + alone if texts.specials else alone
            yield _fit(prompt, responses, tokenizer.bos_token_id, options)
        except Dropped as reason:
            drops.drop(str(reason), where)


# ---- text ------------------------------------------------------------------------------------------------


def _texts(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> _Texts:
    if isinstance(pair.prompt, str):
        return _Texts(pair.prompt, (pair.chosen, pair.rejected), specials=True)
    if not tokenizer.chat_template:
        prompt = render(pair.prompt, tokenizer)
        return _Texts(prompt, (f" {pair.chosen}", f" {pair.rejected}"), specials=True)
    try:
        prompt = render(pair.prompt, tokenizer)
        chosen = _turn(pair.prompt, pair.chosen, prompt, tokenizer)
        rejected = _turn(pair.prompt, pair.rejected, prompt, tokenizer)
    except TemplateError as error:
        # Templates refuse what their model never saw: a system message, or one speaker twice in a row.
        raise Dropped(f"chat template: {error}") from error
    return _Texts(prompt, (chosen, rejected), specials=False)  # a chat template writes its own BOS


def _turn(messages: Sequence[Message], reply: str, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after the generation prompt for `reply`, up to its EOS if it has one."""
    answered = [*messages, {"role": "assistant", "content": reply}]
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    if not whole.startswith(prompt):
        raise DualHeadError(
            f"With an answer, the chat template no longer begins with its own prompt (...{prompt[-40:]!r}), "
            "so no response can be told from it. Give tokenizer.chat_template a generation prompt that "
            "begins the assistant's turn, or set it to None for plain transcripts."
        )
    turn, eos = whole[len(prompt) :], tokenizer.eos_token
    # ChatML closes a turn with "<|im_end|>\n", but nothing is ever generated behind EOS.
    return turn.rstrip() if eos and turn.rstrip().endswith(str(eos)) else turn


# ---- ids -------------------------------------------------------------------------------------------------


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def first_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The special tokens that the tokenizer puts before a plain text; those it puts behind end a document."""
    marked = tokenizer("a", return_special_tokens_mask=True)
    both = zip(marked["input_ids"], marked["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda marks: marks[1], both)]


def _response(prompt: Ids, whole: Ids, text: str, tokenizer: PreTrainedTokenizerBase, drops: Drops) -> Ids:
    """The ids of `text` that continue `prompt`: those of `whole`, which is the prompt and the text in one."""
    if not text:
        raise Dropped("empty reply")
    if whole[: len(prompt)] == prompt:
        ids = whole[len(prompt) :]
    else:
        ids = _mend(prompt, whole, text, tokenizer)
        drops.notes["seam mended: tokenised apart what would merge prompt and reply into one token"] += 1
    if not ids:
        raise Dropped("empty reply")
    return ids


def _mend(prompt: Ids, whole: Ids, text: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids of `text` tokenised apart, with which `prompt` decodes to the same text as `whole`.

    A tokenizer that begins any text with a space would put one into the seam: an anchor takes it instead.
    """
    wanted = tokenizer.decode(whole, clean_up_tokenization_spaces=False)
    for anchor in ("", "\n", "a"):
        before, both = _ids([anchor, anchor + text], tokenizer)
        ids = both[len(before) :]
        if tokenizer.decode(prompt + ids, clean_up_tokenization_spaces=False) == wanted:
            return ids
    raise Dropped("no token boundary between prompt and reply")


def _ended(ids: Ids, eos: Any) -> Ids:
    # A chat template may have written it already.
    return ids if ids[-1] == eos else [*ids, eos]


def _cut_left(ids: Ids, length: int, bos: Any) -> Ids:
    """The last `length` ids, where a BOS stays the first."""
    kept = ids[:1] if ids[:1] == [bos] else []
    return ids if len(ids) <= length else kept + ids[len(ids) - length + len(kept) :]


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
    # A prompt of which only BOS is left is no prompt.
    if room < min(len(prompt), 1 + (prompt[:1] == [bos])):
        raise Dropped("too long")
    return _cut_left(prompt, room, bos), chosen, rejected
