"""Prompts and replies as token ids: training, generation, judges and likelihoods all write with `write`.

    prompt        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n     to where the reply begins
    reply         Hello.<|im_end|>                                           its turn closed, EOS once
    Cut reply     Hello                                                      no end: generation stopped there

A text prompt is continued letter by letter; the tokenizer's first special tokens go before it. A conversation is
written by the chat template, or as an HH-RLHF transcript where there is none. In a message, "<|im_end|>" is text:
special tokens are the tokenizer's and the template's alone.

This module knows tokenizers and chat templates. It knows no file format, no tensor and no length.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.data import Cut, Dropped, Message, Prompt
from dual_head.errors import DualHeadError
from dual_head.files.reading import reason, time_limit

__all__ = ["APART", "Ids", "Written", "first_ids", "special_tokens_in", "token_ids", "write"]

Ids = list[int]

GUARD = "\ufdd0"
"""Splits a special token that a message spells. Unicode reserves it as no character, so no text holds it."""

SEAM = "seam mended: tokenised apart what would merge prompt and reply into one token"
REWRITTEN = "the chat template changed a message's text"
APART = "the chat template does not continue its own prompt, so the reply follows it as it is"

PATIENCE, RENDERED = 10, 20
"""Seconds that a chat template has, and how many more conversations it writes in each further second."""
LONGEST_TEXT = 2**26  # characters that a chat template may write
_HALF = re.compile("[\ud800-\udfff]")  # of a character, which no tokenizer takes

_SPEAKERS = {"system": "\n\n", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}


@dataclass(frozen=True, slots=True)
class Written:
    """Token ids of a prompt and of each reply to it; every reply continues the prompt's ids.

    notes: what was done to the texts, such as `REWRITTEN`, once for each time.
    """

    prompt: Ids
    replies: tuple[Ids, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Texts:
    prompt: str
    replies: tuple[str, ...]  # each continues the prompt character by character
    first: Ids  # special tokens before the prompt
    notes: tuple[str, ...] = ()


def write(
    exchanges: Sequence[tuple[Prompt, Sequence[str]]],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[Written | Dropped]:
    """Write prompts, each with its replies, as token ids; in place of one that cannot be written, why.

    A reply ends with EOS, or with what an encoder's tokenizer puts behind a text, unless it is a `Cut`. tools: the
    functions that the chat template may tell the model of, as JSON schemas.
    """
    specials, first, end = _specials(tokenizer), first_ids(tokenizer), _end_ids(tokenizer)
    texts: list[_Texts | Dropped] = []
    try:
        with time_limit(PATIENCE + len(exchanges) / RENDERED):
            for prompt, replies in exchanges:
                try:
                    texts.append(_texts(prompt, replies, tokenizer, specials, first, tools))
                except Dropped as reason:
                    texts.append(reason)
    except TimeoutError as error:
        raise DualHeadError(
            f"The chat template of this tokenizer had not ended after {PATIENCE} s. Take the chat_template.jinja of "
            "the model that the backbone was made from."
        ) from error
    strings = [text for x in texts if isinstance(x, _Texts) for text in (x.prompt, *(x.prompt + r for r in x.replies))]
    ids = iter(token_ids(strings, tokenizer))
    out: list[Written | Dropped] = []
    for (_, replies), x in zip(exchanges, texts, strict=True):
        if isinstance(x, Dropped):
            out.append(x)
            continue
        prompt, *wholes = islice(ids, 1 + len(x.replies))
        try:
            out.append(_written(x, prompt, wholes, replies, end, tokenizer))
        except Dropped as reason:
            out.append(reason)
    return out


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Token ids of texts, with no special token before or behind; a guard splits a token and has no id of its own."""
    if not texts:
        return []
    guarded = bool(tokenizer.is_fast) and any(GUARD in text for text in texts)
    batch = tokenizer(list(texts), add_special_tokens=False, verbose=False, return_offsets_mapping=guarded)
    if not guarded:
        return batch["input_ids"]
    return [
        [token for token, (start, end) in zip(ids, spans, strict=True) if text[start:end].strip(GUARD) or start == end]
        for text, ids, spans in zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def first_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The special tokens that the tokenizer puts before a plain text; those it puts behind end a document."""
    return _outer(tokenizer, 1)


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    eos: Any = tokenizer.eos_token_id
    return _outer(tokenizer, -1)[::-1] if eos is None else [eos]


def _outer(tokenizer: PreTrainedTokenizerBase, step: int) -> Ids:
    """The special tokens around a text, from one of its ends inwards."""
    marked = tokenizer("a", return_special_tokens_mask=True)
    both = zip(marked["input_ids"][::step], marked["special_tokens_mask"][::step], strict=True)
    return [token for token, _ in takewhile(lambda marks: marks[1], both)]


def special_tokens_in(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that a text spells, each once, in order."""
    specials = _specials(tokenizer)
    return [] if specials is None else list(dict.fromkeys(specials.findall(text)))


# ---- text ------------------------------------------------------------------------------------------------


def _specials(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What finds special tokens in a message; None where guards could not be taken out again."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {str(token) for token in added if token.special} | {str(name) for name in tokenizer.all_special_tokens}
    longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first and tokenizer.is_fast else None


def _guarded(value: Any, specials: re.Pattern[str] | None) -> Any:
    """The same text, or the same lists and mappings of texts, in which no special token is whole."""
    if isinstance(value, Mapping):
        return {_guarded(key, specials): _guarded(entry, specials) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guarded(entry, specials) for entry in value]
    if specials is None or not isinstance(value, str):
        return value
    return specials.sub(lambda match: match[0][0] + GUARD + match[0][1:], value)


def _texts(
    prompt: Prompt,
    replies: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    specials: re.Pattern[str] | None,
    first: Ids,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> _Texts:
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if any(_HALF.search(text) for text in (*contents, *replies)):
        raise Dropped("half a character (a lone surrogate)")
    if isinstance(prompt, str):
        return _Texts(prompt, tuple(map(str, replies)), first)
    messages = [
        {key: value if key == "role" else _guarded(value, specials) for key, value in message.items()}
        for message in prompt
    ]
    text = _rendered(messages, tokenizer, _guarded(tools, specials))
    contents = [_guarded(reply, specials) for reply in replies]
    if not tokenizer.chat_template:
        spaced = (content if content[:1].isspace() else f" {content}" for content in contents)
        return _Texts(text, tuple(spaced), first)
    turns, notes = [], [REWRITTEN] * _lacks(text, (message["content"] for message in messages))
    for reply, content in zip(replies, contents, strict=True):
        turn = _turn(messages, content, text, tokenizer)
        if turn is None:
            notes.append(APART)
            turns.append(content)
            continue
        notes += [REWRITTEN] * _lacks(turn, [content])
        turns.append(_opened(turn, content) if isinstance(reply, Cut) else turn)
    # A chat template writes the first special tokens itself.
    return _Texts(text, tuple(turns), [], tuple(notes))


def _rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None = None) -> str:
    """The text of a conversation up to its reply: by the chat template, else "\\n\\nHuman: ...\\n\\nAssistant:"."""
    if tokenizer.chat_template:
        return _template(messages, tokenizer, add_generation_prompt=True, **({"tools": tools} if tools else {}))
    turns = (_SPEAKERS[message["role"]] + message["content"] for message in messages)
    return "".join(turns) + "\n\nAssistant:"


def _template(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    try:
        text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except TimeoutError:
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        # Templates refuse what their model never saw: a system message, or one speaker twice in a row.
        raise Dropped(f"chat template: {reason(error).removesuffix('.')}") from error
    if len(text) > LONGEST_TEXT:
        raise Dropped(f"chat template: it writes {len(text):,} characters")
    return text


def _turn(messages: Sequence[Message], reply: str, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the chat template writes behind the generation prompt for `reply`, up to its EOS if it has one.

    None where the answered conversation no longer begins with the prompt. A template that puts a space before a
    reply meets replies that begin with it, since a model writes it itself.
    """
    turn = _behind(prompt, _template([*messages, _assistant(reply)], tokenizer))
    lead = turn[: turn.find(reply)] if turn and reply in turn else ""
    if lead and lead.isspace() and reply.startswith(lead):
        turn = _behind(prompt, _template([*messages, _assistant(reply.removeprefix(lead))], tokenizer))
    eos = tokenizer.eos_token
    # ChatML closes a turn with "<|im_end|>\n", but nothing is ever generated behind EOS.
    return turn.rstrip() if turn and eos and turn.rstrip().endswith(str(eos)) else turn


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _behind(prompt: str, whole: str) -> str | None:
    return whole[len(prompt) :] if whole.startswith(prompt) else None


def _opened(turn: str, reply: str) -> str:
    """The turn without what closes it behind the reply; all of it where the template rewrote the reply."""
    if not reply.strip():
        return reply
    before, text, _ = turn.rpartition(reply.strip())
    return before + text + reply[len(reply.rstrip()) :] if text else turn


def _lacks(text: str, contents: Iterable[str]) -> int:
    return sum(content.strip() not in text for content in contents)


# ---- ids -------------------------------------------------------------------------------------------------


def _written(
    texts: _Texts,
    prompt: Ids,
    wholes: Sequence[Ids],
    replies: Sequence[str],
    end: Ids,
    tokenizer: PreTrainedTokenizerBase,
) -> Written:
    """Ids of the replies that continue `prompt`: those of `wholes`, which are prompt and reply in one."""
    out, notes = [], [*texts.notes]
    for text, whole, reply in zip(texts.replies, wholes, replies, strict=True):
        ids = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt:
            ids = _mended(prompt, whole, text, tokenizer)
            notes.append(SEAM)
        out.append(ids if isinstance(reply, Cut) else _ended(ids, end))
    return Written(texts.first + prompt, tuple(out), tuple(notes))


def _mended(prompt: Ids, whole: Ids, text: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids of `text` tokenised apart, with which `prompt` decodes to the same text as `whole`.

    A tokenizer that begins any text with a space would put one into the seam: an anchor takes it instead.
    """
    expected = tokenizer.decode(whole, clean_up_tokenization_spaces=False)
    for anchor in ("", "\n", "a"):
        before, both = token_ids([anchor, anchor + text], tokenizer)
        ids = both[len(before) :]
        if tokenizer.decode(prompt + ids, clean_up_tokenization_spaces=False) == expected:
            return ids
    raise Dropped("no token boundary between prompt and reply")


def _ended(ids: Ids, end: Ids) -> Ids:
    # A chat template may have written it already.
    return ids if end and ids[-len(end) :] == end else [*ids, *end]
