"""The prompts of `generate` and `sweep`: their options, their files and their messages, all without torch."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_head.data import Dropped, Message, Prompt, RowReport
from dual_head.data.files import rows_of_file
from dual_head.data.sources import is_data_name
from dual_head.data.turns import lower_names, require_no_images, system_of, unread_columns, with_system
from dual_head.errors import DualHeadError
from dual_head.files.reading import json_value, reason
from dual_head.options import Options, option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")
ROW = 'a row is {"prompt": text or messages} or {"messages": [{"role": "user", "content": ...}, ...]}'


@dataclass(kw_only=True)
class PromptOptions(Options):
    """Where the prompts are, and how they are read."""

    prompt: list[str] | None = option(None, "a prompt; may be given several times", heading="prompts", repeat=True)
    prompts: str | None = option(
        None,
        'one prompt a line; or JSONL, JSON, CSV or parquet with "prompt" or "messages"',
        flags=("prompts_file",),
        metavar="FILE",
    )
    system: str | None = option(None, "a system message before every prompt", metavar="TEXT")
    raw: bool = option(False, "continue prompts as text; default: a user's message, by the chat template")
    chat: bool = option(False, "a user's message without a chat template too: Human: ... Assistant:")


def read_prompts(args: PromptOptions, *, stdin: bool = False) -> list[Prompt]:
    """Collect the prompts of --prompt and --prompts; without these, and with `stdin`, of standard input.

    Errors: no prompt, an empty one, a file or a row that cannot be read, options that exclude each other.
    """
    if args.raw and (args.chat or args.system is not None):
        other = "--chat" if args.chat else "--system"
        raise DualHeadError(f"--raw continues a prompt as text, and {other} makes it a message. Leave one out.")
    prompts: list[Prompt] = [*(args.prompt or ())]
    if args.prompts:
        rows = list(_file_prompts(Path(args.prompts), raw=args.raw))
        if not rows:
            raise DualHeadError(f"The file of prompts '{args.prompts}' is empty. Write one prompt a line.")
        prompts += rows
    elif not prompts and stdin and not sys.stdin.isatty():
        prompts = [_standard_input()]
    elif not prompts:
        raise DualHeadError("There are no prompts. Give one with --prompt, or a file with --prompts.")
    if not all(shown(prompt).strip() for prompt in prompts):
        raise DualHeadError("The prompt is empty. Give at least one word.")
    return prompts


def _standard_input() -> str:
    """Standard input as one prompt, read as files are, whatever the locale."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").strip("\n")
    except UnicodeDecodeError as error:
        raise DualHeadError(f"Cannot read the prompt on standard input: {error}. Give it as UTF-8 text.") from error


def conversations(prompts: Sequence[Prompt], args: PromptOptions, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """The conversations of prompts under --raw, --chat and --system, see `generate.conversation_of`."""
    from dual_head.model.generate import conversation_of

    if args.chat:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    return [conversation_of(p, tokenizer, chat_template=not args.raw, system=args.system) for p in prompts]


def shown(prompt: Prompt) -> str:
    """A prompt as one text to print: its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


# ---- files -------------------------------------------------------------------------------------------------


def _file_prompts(file: Path, *, raw: bool) -> Iterator[Prompt]:
    for row, where in _rows(file):
        prompt = _prompt(row, where)
        if raw and not isinstance(prompt, str):
            raise DualHeadError(f"{where} is a conversation, and --raw continues texts. Leave out --raw.")
        yield prompt


def _rows(file: Path) -> Iterator[tuple[Any, str]]:
    """Rows with their places; each line of a text file is JSON or a prompt."""
    if file.suffix.lower() != ".jsonl" and is_data_name(file.name) and file.exists():
        yield from rows_of_file(file, RowReport())
        return
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Check the path." if isinstance(error, OSError) else "Save them as UTF-8 text."
        raise DualHeadError(f"Cannot read the prompts in '{file}': {reason(error)} {remedy}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _line(line.rstrip("\r"), f"{file}:{number}"), f"{file}:{number}"


def _line(line: str, where: str) -> Any:
    """The value of a line of JSON, or else the line: "[INST] ..." is a text."""
    try:
        value = json_value(line) if line.lstrip()[0] in "{[" else line
    except (ValueError, RecursionError) as error:
        if line.lstrip().startswith("{"):
            raise DualHeadError(f"{where} is not valid JSON; {ROW}.") from error
        return line
    return value if isinstance(value, dict) or _is_messages(value) else line


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def _prompt(row: Any, where: str) -> Prompt:
    """The prompt of a row, a conversation where a system message stands in a column of its own."""
    columns = lower_names(row) if isinstance(row, dict) else {"prompt": row}
    require_no_images(columns, where)
    prompt: Any = columns.get("messages") if columns.get("prompt") is None else columns["prompt"]
    if not isinstance(prompt, str):
        _require_conversation(prompt, where)
    try:
        if system_of(columns):
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            prompt = list(with_system(columns, tuple(turns)))
    except Dropped as reason:
        raise DualHeadError(f"{where} cannot be read: {reason}; {ROW}.") from reason
    if unread := ", ".join(unread_columns(columns, prompt)):
        raise DualHeadError(
            f"{where}: columns that are not read here: {unread}. Leave them out, or write them into the prompt."
        )
    return prompt


def _require_conversation(turns: Any, where: str) -> None:
    if not _is_messages(turns):
        raise DualHeadError(f"{where} has no prompt; {ROW}.")
    for message in turns:
        _require_message(message, where)
    if turns[-1]["role"] == "assistant":
        raise DualHeadError(f"{where} ends with a message of the assistant, which is to be generated. Leave it out.")


def _require_message(message: Message, where: str) -> None:
    if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
        raise DualHeadError(
            f"{where}: a message must have a role ({', '.join(ROLES)}) and a text as content, not {str(message)[:80]}."
        )
    if keys := sorted(set(message) - {"role", "content"}):
        raise DualHeadError(f"{where}: a message has {', '.join(keys)}, which are not read here. Leave them out.")
