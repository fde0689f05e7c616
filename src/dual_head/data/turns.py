"""What a row holds: texts, messages, transcripts, a question in one of several columns, and what is left out.

Pairs and questions are read with these. It knows columns and spellings; formats and files are elsewhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dual_head.data import Cut, Dropped, Message
from dual_head.errors import DualHeadError

__all__ = [
    "begins_transcript",
    "conversation_of",
    "has_question",
    "lower_names",
    "messages",
    "notes_of",
    "question_of",
    "require_no_images",
    "system_of",
    "template_notes",
    "text",
    "transcript",
    "unread_columns",
    "unread_keys",
    "with_system",
]

Row = Mapping[str, Any]

QUESTIONS = ("prompt", "instruction", "question", "query", "input", "goal")  # columns of texts, in this order
CONVERSATIONS = ("messages", "conversations", "conversation")  # columns of messages that a reply follows
COMPLETIONS = ("completion", "response", "reply", "output")  # columns of one reply, in this order
SYSTEMS = ("system", "system_prompt", "system_message")
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "model", "bot"), "assistant")
_IMAGES = ("image", "images")  # columns of them
_IMAGE_PARTS = {"image", "image_url", "input_image"}  # of a message's content
_CALLS = ("tool_calls", "function_call")  # what an assistant did instead of speaking
_READ = {"role", "content", "from", "value", "finish_reason"}  # of a message
_BESIDE = ("tools", "functions", "history", "context", "documents", *SYSTEMS, *QUESTIONS[1:])  # columns of a prompt

# A blank line alone separates paragraphs, not turns. A prompt may end in a bare "Assistant:".
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):(?=\s|\Z)")
_TEMPLATED = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start_of_role\|>|<\|(?:user|assistant|system)\|>|\[/?INST\]"
    r"|<<SYS>>|### (?:Instruction|Response):"
)
_WRITTEN_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_SCORES = re.compile("score|rating|reward|grade")


def lower_names(row: Row) -> Row:
    """The row with its columns named in lower case, without spaces around; two columns never become one."""
    plain: dict[str, Any] = {}
    for column, value in row.items():
        name = str(column).strip().lower()
        plain[column if name != column and (name in row or name in plain) else name] = value
    return plain


def require_no_images(row: Row, where: str) -> None:
    """Refuse a row with an image, of which a guide would learn the reply without what it is about."""
    column = next((column for column in _IMAGES if row.get(column)), None)
    columns = [name for name, entries in _message_lists(row) if any(map(_has_image, entries))]
    if column or columns:
        raise DualHeadError(
            f"{where}: column '{column or columns[0]}' holds an image, and guides are trained and evaluated on text. "
            "Remove such rows, or say in words what the image shows. A guide of text also acts on requests with "
            "images: model.generate(**processor(...))."
        )


def _has_image(message: Any) -> bool:
    content = message.get("content", message.get("value")) if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else ()
    return any(isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS for part in parts)


def _message_lists(row: Row) -> Iterator[tuple[str, Sequence[Any]]]:
    """The columns that may hold messages, each with its messages."""
    for column in ("chosen", "rejected", *COMPLETIONS, "prompt", *CONVERSATIONS):
        value = row.get(column)
        yield column, value if isinstance(value, list) else [value]


def text(value: Any) -> str:
    """Check a text. Errors: `Dropped` for anything else, and for a list of messages written as a text."""
    # A lone surrogate is valid JSON, but no tokenizer takes it.
    if not isinstance(value, str) or value.encode(errors="replace").decode() != value:
        raise Dropped("malformed row")
    if _WRITTEN_MESSAGES.match(value):
        raise Dropped("messages written as a text, not as a list")
    return value


def messages(value: Any) -> tuple[Message, ...]:
    """Check a list of messages, or one; {"from", "value"} are read too. Errors: `Dropped`, as for calls of tools."""
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise Dropped("malformed row")
    return tuple(map(_message, entries))


def _message(message: Row) -> Message:
    calls = next((key for key in _CALLS if message.get(key)), None)
    if calls:
        raise Dropped(f"a message with {calls}, which are not read")
    speaker, content = (message.get("role", message.get("from")), message.get("content", message.get("value")))
    if not isinstance(speaker, str):
        raise Dropped("malformed row")
    if speaker.strip().lower() not in _ROLES:
        raise Dropped(f"a message by '{speaker[:30]}', not by system, user or assistant")
    body = _content(content)
    # OpenAI's word for a reply that reached the limit of tokens: its turn has no end to learn.
    body = Cut(body) if message.get("finish_reason") == "length" else body
    return {"role": _ROLES[speaker.strip().lower()], "content": body}


def _content(value: Any) -> str:
    """The text of a message, which may be a list of parts {"type": "text", "text"}."""
    if not isinstance(value, list):
        return text(value)
    if not value or any(not isinstance(part, Mapping) or part.get("type") != "text" for part in value):
        raise Dropped("a message with more than text")
    return "\n".join(text(part.get("text")) for part in value)


def transcript(body: str) -> tuple[Message, ...]:
    """Parse "\\n\\nHuman: ...\\n\\nAssistant: ..." into messages; what precedes them is the system's."""
    preamble, *turns = _TURN.split(_lines(body))
    roles = ("user" if speaker == "Human" else "assistant" for speaker in turns[::2])
    spoken = tuple({"role": role, "content": turn.strip()} for role, turn in zip(roles, turns[1::2], strict=True))
    return ({"role": "system", "content": preamble.strip()}, *spoken) if preamble.strip() else spoken


def begins_transcript(body: str) -> bool:
    """Whether a text begins with a turn of a transcript."""
    return bool(_TURN.match(body))


def _lines(body: str) -> str:
    """The text with lines that end as on Unix."""
    return body.replace("\r\n", "\n").replace("\r", "\n")


# ---- questions -------------------------------------------------------------------------------------------


def has_question(row: Row, kind: type = object) -> bool:
    """Whether a row has a question, as a text (str) or as messages (list)."""
    question = _question(row)
    return question is not None and isinstance(question, kind)


def question_of(row: Row) -> str | tuple[Message, ...]:
    """The question of a row, as a text or as messages. "instruction" and "input" are joined by a blank line.

    Errors: `Dropped` for a row without one.
    """
    question = _question(row)
    if question is None and any(isinstance(row.get(column), list) for column in CONVERSATIONS):
        raise Dropped("last turn is not the user's")
    if question is None:
        values = [row[column] for column in (*QUESTIONS, *CONVERSATIONS) if column in row]
        empty = all(value is None for value in values)
        raise Dropped("malformed row" if not empty else "empty prompt" if values else "no column of a prompt")
    return text(question) if isinstance(question, str) else messages(question)


def conversation_of(row: Row) -> tuple[Message, ...]:
    """The question as messages: a text is the user's, and a system message in a column of its own goes before."""
    question = question_of(row)
    return with_system(row, ({"role": "user", "content": question},) if isinstance(question, str) else question)


def with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns behind the row's own system message, unless they have one."""
    return turns if any(turn["role"] == "system" for turn in turns) else system_of(row) + turns


def system_of(row: Row) -> tuple[Message, ...]:
    """The system message in a column of its own, if there is one."""
    system = next((row[column] for column in SYSTEMS if isinstance(row.get(column), str)), "")
    return ({"role": "system", "content": text(system)},) if system.strip() else ()


def _question(row: Row) -> str | Sequence[Any] | None:
    column = next((column for column in QUESTIONS if isinstance(row.get(column), str | list)), None)
    if column is None:
        # A whole conversation, its reply included, is not a question.
        lists = (row[column] for column in CONVERSATIONS if isinstance(row.get(column), list) and row[column])
        return next((turns for turns in lists if _speaker(turns[-1]) == "user"), None)
    context = row.get("input")
    if column == "instruction" and isinstance(context, str) and context.strip():
        return f"{row[column]}\n\n{context}"
    return row[column]


def _speaker(message: Any) -> str | None:
    speaker = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    return _ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None


# ---- notes for the report of the rows --------------------------------------------------------------------


def notes_of(row: Row, prompt: str | Sequence[Message], replies: Sequence[str] = ()) -> Iterator[str]:
    """What was left out of a row, and what its texts and scores suggest, each in one line."""
    yield from (f"{key} of messages left out" for key in unread_keys(row))
    yield from (f"column '{column}' left out" for column in unread_columns(row, prompt))
    yield from template_notes((*_texts(prompt), *replies))
    yield from _scores(row)


def template_notes(texts: Iterable[str]) -> list[str]:
    """Say that a chat template has already written these texts, and name its first mark."""
    marks = (_TEMPLATED.search(body) for body in texts)
    return [f"a text that a chat template has written before: it holds {mark[0]}" for mark in marks if mark][:1]


def unread_keys(row: Row) -> list[str]:
    """What the messages of a row have beside a role and a text."""
    entries = (entry for _, entries in _message_lists(row) for entry in entries)
    return sorted({key for entry in entries if isinstance(entry, Mapping) for key in entry if entry[key]} - _READ)


def unread_columns(row: Row, prompt: str | Sequence[Message]) -> list[str]:
    """The columns that belong to a prompt and are nowhere in it."""
    texts = _texts(prompt)
    return [column for column in _BESIDE if _is_left_out(row.get(column), texts)]


def _texts(prompt: str | Sequence[Message]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]


def _is_left_out(value: Any, texts: Sequence[str]) -> bool:
    """Whether what a column holds is nowhere in a prompt; a transcript, which becomes turns, is not looked for."""
    if not value or not isinstance(value, str | list | dict) or (isinstance(value, str) and begins_transcript(value)):
        return False
    return not any(_lines(str(value)).strip() in _lines(body) for body in texts)


def _scores(row: Row) -> Iterator[str]:
    for column in row:
        if "chosen" in column and _SCORES.search(column):
            opposite = column.replace("chosen", "rejected")
            chosen, rejected = _number(row[column]), _number(row.get(opposite))
            if chosen is not None and rejected is not None and chosen <= rejected:
                yield f"{column} is {'equal to' if chosen == rejected else 'below'} {opposite}"
    margin = _number(row.get("margin"))
    if margin is not None and margin <= 0:
        yield f"margin is {'zero' if margin == 0 else 'below zero'}"


def _number(value: Any) -> float | None:
    """A number, which tables write as text; None for anything else."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
