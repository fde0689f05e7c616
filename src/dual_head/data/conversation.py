"""Prompts and replies as token ids: training, generation, judges and likelihoods all write with `write`.

    prompt        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n     to where the reply begins
    reply         Hello.<|im_end|>                                           its turn closed, EOS once
    Cut reply     Hello                                                      no end: generation stopped there

A text prompt is continued letter by letter; the tokenizer's first special tokens go before it. A conversation is
written by the chat template, or as an HH-RLHF transcript where there is none. In a message, "<|im_end|>" is text:
special tokens are the tokenizer's and the template's alone.

It knows tokenizers and chat templates; how long a prompt may be is decided by `tokenize`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.data import Cut, Dropped, Message, Prompt
from dual_head.errors import DualHeadError
from dual_head.files.reading import reason, time_limit

__all__ = ["APART", "Ids", "Written", "first_ids", "special_tokens_in", "token_ids", "write"]

Ids = list[int]

GUARD = "\ufdd0"
"""Splits a special token that a message spells. Unicode reserves it as a noncharacter, so texts do not hold it."""

PROBE = "\ue000"
"""Shows whether a chat template writes a message's text. Unicode leaves it to private use."""

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
    """Write prompts, each with its replies, as token ids; `Dropped` with the reason for one that cannot be written.

    A reply ends with EOS, or with what an encoder's tokenizer puts behind a text, unless it is a `Cut`. tools: the
    functions that the chat template may tell the model of, as JSON schemas.
    """
    writer = _Writer(tokenizer, tools)
    texts: list[_Texts | Dropped] = []
    try:
        with time_limit(PATIENCE + len(exchanges) / RENDERED):
            for prompt, replies in exchanges:
                try:
                    texts.append(writer.texts(prompt, replies))
                except Dropped as reason:
                    texts.append(reason)
    except TimeoutError as error:
        raise DualHeadError(
            f"The chat template of this tokenizer had not ended after {PATIENCE} s. Take the chat_template.jinja of "
            "the model that the backbone was made from."
        ) from error
    strings = [text for x in texts if isinstance(x, _Texts) for text in (x.prompt, *(x.prompt + r for r in x.replies))]
    ids = iter(token_ids(strings, tokenizer))
    results: list[Written | Dropped] = []
    for (_, replies), x in zip(exchanges, texts, strict=True):
        try:
            if isinstance(x, Dropped):
                raise x
            prompt, *wholes = islice(ids, 1 + len(x.replies))
            results.append(writer.written(x, prompt, wholes, replies))
        except Dropped as reason:
            results.append(reason)
    return results


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
    inwards = zip(marked["input_ids"][::step], marked["special_tokens_mask"][::step], strict=True)
    return [token for token, _ in takewhile(lambda marks: marks[1], inwards)]


def special_tokens_in(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that a text spells, each once, in order."""
    specials = _specials(tokenizer)
    return [] if specials is None else list(dict.fromkeys(specials.findall(text)))


# ---- text ------------------------------------------------------------------------------------------------


def _specials(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """A pattern of the special tokens; None for a slow tokenizer, which could not take guards out again."""
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


class _Writer:
    """Writes texts by a tokenizer and its chat template, and then their ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] | None):
        self.tokenizer, self.specials = tokenizer, _specials(tokenizer)
        self.first, self.end = first_ids(tokenizer), _end_ids(tokenizer)
        self.tools = {"tools": _guarded(tools, self.specials)} if tools else {}
        self.in_parts = False  # whether a content is a list of parts to the template

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the chat template writes parts of a content and nothing of a text, as models of images have it."""
        message = {"role": "user", "content": PROBE}
        try:
            return PROBE not in self._template([message]) and PROBE in self._template([_as_parts(message)])
        except Dropped:
            return False

    def texts(self, prompt: Prompt, replies: Sequence[str]) -> _Texts:
        """A prompt and the replies that continue it. Errors: `Dropped` for what cannot be written; lists of parts."""
        contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        if any(isinstance(content, list) for content in contents):
            raise DualHeadError(
                "The content of a message is a text here, not a list of parts. Join its texts. Where a part is an "
                "image, let the backbone's processor write the conversation: "
                "generate(**processor.apply_chat_template(..., tokenize=True, return_dict=True, return_tensors='pt'))."
            )
        if any(_HALF.search(text) for text in (*contents, *replies)):
            raise Dropped("half a character (a lone surrogate)")
        if isinstance(prompt, str):
            return _Texts(prompt, tuple(map(str, replies)), self.first)
        messages = [
            {key: value if key == "role" else _guarded(value, self.specials) for key, value in message.items()}
            for message in prompt
        ]
        contents = [_guarded(reply, self.specials) for reply in replies]
        if not self.tokenizer.chat_template:
            text = "".join(_SPEAKERS[message["role"]] + message["content"] for message in messages)
            spaced = (content if content[:1].isspace() else f" {content}" for content in contents)
            return _Texts(f"{text}\n\nAssistant:", tuple(spaced), self.first)
        text = self._template(messages, add_generation_prompt=True, **self.tools)
        lacking = _lacks(text, (message["content"] for message in messages))
        if lacking and not self.in_parts and self._reads_parts:
            self.in_parts = True
            return self.texts(prompt, replies)
        turns, notes = [], [REWRITTEN] * lacking
        for reply, content in zip(replies, contents, strict=True):
            turn = self._turn(messages, content, text)
            if turn is None:
                notes.append(APART)
                turns.append(content)
                continue
            notes += [REWRITTEN] * _lacks(turn, [content])
            turns.append(_opened(turn, content) if isinstance(reply, Cut) else turn)
        # A chat template writes the first special tokens itself.
        return _Texts(text, tuple(turns), [], tuple(notes))

    def _template(self, messages: Sequence[Message], **options: Any) -> str:
        conversation = [_as_parts(message) for message in messages] if self.in_parts else list(messages)
        try:
            text = str(self.tokenizer.apply_chat_template(conversation, tokenize=False, **options))
        except TimeoutError:
            raise
        except Exception as error:  # a template is a program, and may fail in any way
            # Templates refuse what their model was not trained on: a system message, or one speaker twice in a row.
            raise Dropped(f"chat template: {reason(error).removesuffix('.')}") from error
        if len(text) > LONGEST_TEXT:
            raise Dropped(f"chat template: it writes {len(text):,} characters")
        return text

    def _turn(self, messages: Sequence[Message], reply: str, prompt: str) -> str | None:
        """What the chat template writes behind the generation prompt for `reply`, up to its EOS if it has one.

        None where the answered conversation no longer begins with the prompt. A space that the template puts before a
        reply is written once, also where the reply begins with it, as a model's own do.
        """
        turn = _behind(prompt, self._template([*messages, _assistant(reply)]))
        lead = turn[: turn.find(reply)] if turn and reply in turn else ""
        if lead and lead.isspace() and reply.startswith(lead):
            turn = _behind(prompt, self._template([*messages, _assistant(reply.removeprefix(lead))]))
        eos = self.tokenizer.eos_token
        # ChatML closes a turn with "<|im_end|>\n", but generation ends at EOS.
        return turn.rstrip() if turn and eos and turn.rstrip().endswith(str(eos)) else turn

    def written(self, texts: _Texts, prompt: Ids, wholes: Sequence[Ids], replies: Sequence[str]) -> Written:
        """Ids of the replies that continue `prompt`: those of `wholes`, which are prompt and reply in one."""
        written, notes = [], [*texts.notes]
        for text, whole, reply in zip(texts.replies, wholes, replies, strict=True):
            ids = whole[len(prompt) :]
            if whole[: len(prompt)] != prompt:
                ids = self._mended(prompt, whole, text)
                notes.append(SEAM)
            # A chat template may have written the end already.
            ended = isinstance(reply, Cut) or (self.end and ids[-len(self.end) :] == self.end)
            written.append(ids if ended else [*ids, *self.end])
        return Written(texts.first + prompt, tuple(written), tuple(notes))

    def _mended(self, prompt: Ids, whole: Ids, text: str) -> Ids:
        """The ids of `text` tokenised apart, with which `prompt` decodes to the same text as `whole`.

        A tokenizer that begins every text with a space would put one into the seam, so an anchor goes before it:

            prompt [p p]   whole [p x t]   anchor + text [a | t t]   result [t t], if p p t t decodes to the same text
        """
        expected = self.tokenizer.decode(whole, clean_up_tokenization_spaces=False)
        for anchor in ("", "\n", "a"):
            start, joined = token_ids([anchor, anchor + text], self.tokenizer)
            ids = joined[len(start) :]
            if self.tokenizer.decode(prompt + ids, clean_up_tokenization_spaces=False) == expected:
                return ids
        raise Dropped("no token boundary between prompt and reply")


def _as_parts(message: Message) -> Any:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


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
