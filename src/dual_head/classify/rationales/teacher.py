"""Rationales written by a teacher who is told the label: what it is asked, what is made of its reply, what is kept.

A reply that names a label, or does not end in the answer, is asked for again with what was wrong, and kept with a flag
where that does not help. The file is only ever appended to, a line for each row, so that a killed run goes on where
it stopped. It knows conversations and texts; who answers is handed in.
Source: Dual-Head Reasoning Distillation (Xu et al. 2025): 2 to 5 sentences, no label words, then the answer.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dual_head.backbone.fingerprint import digest
from dual_head.classify.rationales.lint import agrees, label_words
from dual_head.classify.types import Example, Label, classes_of, in_words
from dual_head.data import Message
from dual_head.errors import DualHeadError
from dual_head.files.reading import json_value

__all__ = ["Ask", "TeacherOptions", "Written", "write_rationales"]

Talk = list[Message]
Ask = Callable[[Sequence[Talk]], Iterator[tuple[int, str | None]]]
"""Answers conversations, in any order: (index, reply), or (index, None) for one without a reply."""

ANSWER = "Final Answer:"
NO_RATIONALE, NO_ANSWER, OTHER, WORD = "no rationale", "no answer", "another answer", "label word"


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher is asked: attempts for one row; sentences, fewest and most; task: what the labels are about."""

    attempts: int = 3
    sentences: tuple[int, int] = (2, 5)
    task: str = ""
    at_once: int = 256  # rows whose further attempts wait for each other

    def __post_init__(self) -> None:
        if min(self.attempts, self.at_once, self.sentences[0]) < 1 or self.sentences[1] < self.sentences[0]:
            raise DualHeadError(
                "attempts and sentences are at least 1, and the most sentences no fewer than the least."
            )


@dataclass(slots=True)
class Written:
    """What became of the rows: written now, written before, ...; asked: conversations sent, one for each attempt."""

    rows: int = 0
    written: int = 0
    before: int = 0
    unlabelled: int = 0
    unanswered: int = 0
    asked: int = 0
    flags: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Reply:
    rationale: str
    answer: str
    flags: tuple[str, ...]
    attempts: int = 1


def write_rationales(
    examples: Sequence[Example],
    labels: Sequence[str],
    ask: Ask,
    file: str | Path,
    *,
    teacher: str,
    options: TeacherOptions | None = None,
    multi_label: bool = False,
    on_row: Callable[[Written], object] | None = None,
) -> Written:
    """Ask for a rationale of each example, and append a line to `file` as soon as it is there.

    labels: names by index; teacher: who answers, kept in every line; multi_label: a row may have several labels,
    which are written by name, as its zeros and ones would lose the names; on_row: is told the account after each row.
    A line is {"input_text", "label", "rationale", "answer", "id", "group", "teacher", "attempts", "flags", "key"}:
    the label is the example's own, the answer the teacher's. Equal inputs with equal labels are asked about once.
    Errors: a file that is not one of these, or of another teacher or task.
    """
    options, file = options or TeacherOptions(), Path(file)
    identity = digest([teacher, list(labels), options.task, options.sentences], 16)
    book = _Book(labels, f"{teacher} ({identity})", Written(rows=len(examples)), multi_label, on_row)
    previous = _read(file, book.teacher)
    groups: dict[str, list[Example]] = {}
    for example in examples:
        if example.label is None:
            book.account.unlabelled += 1
        else:
            groups.setdefault(digest([identity, example.input, example.label], 16), []).append(example)
    new = [key for key in groups if key not in previous]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        for key in groups.keys() & previous.keys():
            book.go_on(stream, key, groups[key], previous[key])
        for start in range(0, len(new), options.at_once):
            block = {key: groups[key][0] for key in new[start : start + options.at_once]}
            for key, reply in _explained(block, labels, ask, options, book.account):
                if reply is None:
                    book.account.unanswered += len(groups[key])
                else:
                    book.keep(stream, key, groups[key], reply)
    return book.account


def _explained(
    block: dict[str, Example], labels: Sequence[str], ask: Ask, options: TeacherOptions, account: Written
) -> Iterator[tuple[str, _Reply | None]]:
    """Ask about all, then again about those whose replies are flawed; of flawed replies the least flawed is kept."""
    words = label_words(labels)
    talks = {key: _question(example, labels, options) for key, example in block.items()}
    best: dict[str, _Reply] = {}
    for attempt in range(1, options.attempts + 1):
        keys, again = list(talks), {}
        for index, answer in ask([talks[key] for key in keys]):
            key = keys[index]
            account.asked += 1
            if answer is None:
                yield key, best.get(key)
                continue
            reply = _understood(answer, in_words(block[key].label, labels), words, attempt)
            best[key] = min((reply, best.get(key, reply)), key=lambda one: len(one.flags))
            if not reply.flags or attempt == options.attempts:
                yield key, best[key]
            else:
                again[key] = [*talks[key], *_complaint(answer, reply, words)]
        talks = {key: again[key] for key in keys if key in again}
        if not talks:
            return


def _question(example: Example, labels: Sequence[str], options: TeacherOptions) -> Talk:
    gold, (least, most) = in_words(example.label, labels), options.sentences
    words = ", ".join(f'"{name}"' for name in labels if len(name.strip()) > 1)
    parts = [
        options.task.strip(),
        f"Input:\n{example.input}",
        f"The correct label is: {gold}",
        f"Write {least} to {most} sentences of reasoning that lead from the input to this label, as if you did not "
        "know it yet. Do not say that a label was given."
        + (f" In these sentences, do not use any of the words {words}." if words else " Do not name a label in them.")
        + f" Then write on a line of its own:\n{ANSWER} {gold}",
    ]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]


def _complaint(answer: str, reply: _Reply, words: re.Pattern[str]) -> Talk:
    word = words.search(reply.rationale)
    wrong = {
        NO_RATIONALE: "There is no reasoning before the answer.",
        NO_ANSWER: f'The last line must be "{ANSWER}" and the label.',
        OTHER: "The answer is not the correct label that was given.",
        WORD: f'The reasoning must not contain "{word[0] if word else ""}".',
    }
    complaint = " ".join([*(wrong[flag] for flag in reply.flags), "Write all of it again."])
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": complaint}]


def _understood(reply: str, gold: str, words: re.Pattern[str], attempt: int) -> _Reply:
    """Cut a reply into rationale and answer, and say what is wrong with it."""
    reply = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL)
    parts = re.split(r"[*_#\s]*Final Answer\s*[*_]*\s*:[*_]*", reply, flags=re.IGNORECASE)
    rationale = re.sub(r"\A\W*Reasoning\s*[*_]*:[*_]*\s*", "", parts[0].strip(), flags=re.IGNORECASE)
    answer = parts[-1].strip().split("\n")[0].strip(" *_\"'`").rstrip(".") if len(parts) > 1 else ""
    flags = [
        *([NO_RATIONALE] if not rationale else []),
        *([NO_ANSWER] if not answer else [OTHER] if not agrees(answer, gold) else []),
        *([WORD] if words.search(rationale) else []),
    ]
    return _Reply(rationale, answer, tuple(flags), attempt)


# ---- the file --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Book:
    """Writes lines, and counts them."""

    labels: Sequence[str]
    teacher: str
    account: Written
    multi_label: bool
    on_row: Callable[[Written], object] | None

    def keep(self, stream: IO[str], key: str, rows: Sequence[Example], reply: _Reply) -> None:
        """Append a line for each of the rows that this is a reply to."""
        for example in rows:
            line = {
                "input_text": example.input,
                "label": self._written(example.label),
                "rationale": reply.rationale,
                "answer": reply.answer,
                "id": example.id,
                "group": example.group,
                **({"together": example.together} if example.together else {}),
                "teacher": self.teacher,
                "attempts": reply.attempts,
                "flags": reply.flags,
                "key": key,
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        stream.flush()
        self.account.written += len(rows)
        self.account.flags.update({flag: len(rows) for flag in reply.flags})
        if self.on_row:
            self.on_row(self.account)

    def _written(self, label: Label) -> Any:
        """A label as data have it: a name, the names of several, or shares."""
        if isinstance(label, int):
            return self.labels[label]
        if self.multi_label and isinstance(label, tuple) and set(label) <= {0.0, 1.0}:
            return [self.labels[place] for place in classes_of(label)]
        return label

    def go_on(self, stream: IO[str], key: str, rows: Sequence[Example], lines: Sequence[dict[str, Any]]) -> None:
        """Count the lines that are there, and append for equal rows that came since, or that a kill cut off."""
        self.account.before += min(len(lines), len(rows))
        for line in lines[: len(rows)]:
            self.account.flags.update(line["flags"])
        if len(lines) < len(rows):
            one = lines[0]
            reply = _Reply(one["rationale"], one["answer"], tuple(one["flags"]), one["attempts"])
            self.keep(stream, key, rows[len(lines) :], reply)


def _read(file: Path, teacher: str) -> dict[str, list[dict[str, Any]]]:
    """The lines that are there, by key; a last one that was cut is removed. Errors: not a file of this teacher's."""
    if not file.exists():
        return {}
    whole = file.read_bytes()
    if cut := len(whole) - (whole.rfind(b"\n") + 1):
        whole = whole[: len(whole) - cut]
    rationales: dict[str, list[dict[str, Any]]] = {}
    for number, text in enumerate(whole.decode("utf-8", errors="replace").split("\n")[:-1], 1):
        try:
            line = json_value(text)
            key, author = line["key"], line["teacher"]
            _ = line["rationale"], line["answer"], line["flags"], line["attempts"]
        except (ValueError, TypeError, KeyError) as error:
            raise DualHeadError(
                f"'{file}' line {number} was not written by a teacher. Choose another output."
            ) from error
        if author != teacher:
            raise DualHeadError(
                f"'{file}' has rationales of {author}, and now it would be {teacher}, of other labels, sentences "
                "or task if only the digits differ. Choose another output."
            )
        rationales.setdefault(key, []).append(line)
    if cut and not rationales:
        raise DualHeadError(f"'{file}' was not written by a teacher. Choose another output, or delete it.")
    if cut:
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    return rationales
