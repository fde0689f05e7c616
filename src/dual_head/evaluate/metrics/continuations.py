"""Prompts and what continues them, as token ids: what a likelihood is computed of."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dual_head.data import Cut, Dropped
from dual_head.data.conversation import write
from dual_head.errors import DualHeadError
from dual_head.evaluate.types import Answer, Question
from dual_head.model.generate import Prompt

__all__ = ["Ids", "Row", "beginning", "continuation_ids", "fit", "last_prompt", "reply_rows", "windows"]

Ids = Sequence[int]
Row = tuple[Ids, Ids]  # a prompt's tokens, and those of the continuation to score


def continuation_ids(prompt: Prompt, continuation: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Token ids of a prompt and of what continues it, written as training writes them, with nothing behind.

    A text is continued letter by letter; a conversation's reply stands where the chat template puts it, or after
    "Assistant:" and a space. An empty prompt becomes the token that texts begin with. Errors: an empty continuation,
    or one without tokens; a tokenizer that has no token to begin with.
    """
    if not continuation:
        raise DualHeadError("A continuation is empty, so there is nothing to score. Leave it out.")
    prompt_ids, ids = _ids(prompt, Cut(continuation), tokenizer)
    if not ids:
        raise DualHeadError(f"{continuation!r} cannot be scored as a continuation: it has no tokens. Leave it out.")
    return prompt_ids, ids


def _ids(prompt: Prompt, reply: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    (conversation,) = write([(prompt, (reply,))], tokenizer)
    if isinstance(conversation, Dropped):
        raise DualHeadError(f"{reply!r} cannot be scored as a continuation: {conversation}. Leave it out.")
    return conversation.prompt or [beginning(tokenizer)], conversation.replies[0]


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that predicts the first one of a text: BOS, or EOS where there is none. Errors: neither is there."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise DualHeadError("The tokenizer has neither BOS nor EOS, so nothing predicts a first token. Set one of them.")


def fit(row: Row, context: int | None) -> Row:
    """Cut a prompt on the left until the context has room for every token but the last, which is only predicted.

    Errors: no tokens; a continuation longer than the context.
    """
    prompt, continuation = row
    if not prompt or not continuation:
        raise DualHeadError("A prompt and its continuation have at least one token each.")
    if context is None or len(prompt) + len(continuation) <= context + 1:
        return row
    room = context + 1 - len(continuation)
    if room < 1:
        raise DualHeadError(
            f"A continuation has {len(continuation)} tokens and the model reads {context}. Leave it out or shorten it."
        )
    return prompt[-room:], continuation


def windows(ids: Ids, first: int, context: int | None) -> list[Row]:
    """Cut a text so that each of its tokens is scored once: [(tokens read, tokens scored)].

    Windows score `context` tokens each; the last one scores the rest, and reads as far back as the context allows:
    of 5 tokens in a context of 3, after the token `first`, (f | 1 2 3), (2 3 | 4 5).
    """
    size = max(1, len(ids)) if context is None else context
    text = [first, *ids]
    rows: list[Row] = []
    for start in range(0, len(ids), size):
        end = min(start + size, len(ids))
        rows.append((text[max(0, end - size) : start + 1], text[start + 1 : end + 1]))
    return rows


# ---- answers ---------------------------------------------------------------------------------------------


def last_prompt(question: Question, answer: Answer) -> Prompt:
    """All that was said before the last reply. Errors: a text with a second turn."""
    if not question.follow_ups:
        return question.prompt
    if isinstance(question.prompt, str):
        raise DualHeadError(
            f"The question '{question.id}' is a text with a second turn, which only conversations have. Ask it as chat."
        )
    turns = list(question.prompt)
    for reply, follow_up in zip(answer.replies, question.follow_ups, strict=False):  # the last reply has no follow-up
        turns += [{"role": "assistant", "content": reply.strip()}, {"role": "user", "content": follow_up}]
    return turns


def reply_rows(
    questions: Sequence[Question], answers: Sequence[Answer], tokenizer: PreTrainedTokenizerBase
) -> list[Row | None]:
    """Token ids of each conversation and its last reply, with the token that ended it; None for no token at all."""
    rows: list[Row | None] = []
    for question, answer in zip(questions, answers, strict=True):
        row = _ids(last_prompt(question, answer), answer.marked[-1], tokenizer)
        rows.append(row if row[1] else None)
    return rows
