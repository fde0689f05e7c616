"""The types of preference data: `Pair` and `Feedback`, the report of the rows that were read, a split by prompt."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from dual_head.errors import DualHeadError

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")  # of a tokenised pair
FEEDBACK_COLUMNS = ("prompt_ids", "completion_ids", "mismatched_ids")  # of a tokenised reply, which has a label too
LABEL = "label"

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Prompt = str | Sequence[Message]  # a text to continue, or the conversation so far


class Cut(str):
    """A reply that stopped at the limit of tokens: its turn stays open."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt, the first preferred; a text prompt is continued, a conversation answered."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str

    def flaw(self) -> str | None:
        """Why this pair cannot be learnt from: an empty prompt or reply, or two identical replies."""
        empty = _empty(self.prompt, self.chosen, self.rejected)
        return empty or ("identical" if self.chosen == self.rejected else None)


@dataclass(frozen=True, slots=True)
class Feedback:
    """One reply to a prompt, and whether it is desirable; a text prompt is continued, a conversation answered."""

    prompt: str | tuple[Message, ...]
    completion: str
    label: bool

    def flaw(self) -> str | None:
        """Why this reply cannot be learnt from: an empty prompt or reply."""
        return _empty(self.prompt, self.completion)


def _empty(prompt: str | tuple[Message, ...], *replies: str) -> str | None:
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    if not any(text.strip() for text in texts):
        return "empty prompt"
    return None if all(reply.strip() for reply in replies) else "empty reply"


Row = TypeVar("Row", Pair, Feedback)


class Dropped(Exception):
    """A row that cannot be trained on; the text is the reason that `RowReport` counts it under."""


@dataclass(slots=True)
class RowReport:
    """What became of the rows read: rows = kept + sum(reasons); `first` locates one example per reason.

    sources: what was read, {file: {"bytes", "sha256"}}, or {data set of the hub: {"rows", "sha256"}} of what it gave.
    """

    rows: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, reason: str, where: str) -> None:
        """Count one row dropped for `reason`, found at `where`."""
        self.reasons[reason] += 1
        self.first.setdefault(reason, where)

    def __add__(self, other: "RowReport") -> "RowReport":
        """Account for the rows of both, as for two files read into one training set."""
        return RowReport(
            rows=self.rows + other.rows,
            kept=self.kept + other.kept,
            reasons=self.reasons + other.reasons,
            first=other.first | self.first,
            notes=self.notes + other.notes,
            sources=self.sources | other.sources,
        )

    def as_dict(self) -> dict[str, Any]:
        """Counts as plain values for a report."""
        return {"rows": self.rows, "kept": self.kept, "dropped": dict(self.reasons), "notes": dict(self.notes)}

    def table(self) -> str:
        """Lines for the user: rows read and kept, each reason with its first example, then the notes."""
        lines = [f"{self.rows:>8} rows read", f"{self.kept:>8} kept"]
        for reason, count in self.reasons.most_common():
            lines.append(f"{count:>8} dropped: {reason} (first: {self.first[reason]})")
        for note, count in self.notes.items():
            lines.append(f"    note: {note}" + (f" ({count} times)" if count > 1 else ""))
        return "\n".join(lines)


def rows_digest(rows: Sequence[Any]) -> dict[str, Any]:
    """Number and SHA-256 of rows that are dataclasses, in their order: what a record knows of rows without a file."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(asdict(row)).encode())
    return {"rows": len(rows), "sha256": content.hexdigest()}


def columns_of(names: Iterable[str]) -> tuple[str, str, str]:
    """The columns of token ids, a prompt's and two replies', of tokenised rows that have columns of these names."""
    return FEEDBACK_COLUMNS if LABEL in names else COLUMNS


def split_by_prompt(rows: Iterable[Row], held_out: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Split into (training, held out), where a prompt is held out if sha256(seed, prompt) / 2^256 < held_out.

    No prompt is on both sides, and adding or removing rows moves no other row.
    Raises DualHeadError unless 0 <= held_out <= 1.
    """
    if not 0 <= held_out <= 1:
        raise DualHeadError(f"held_out is a share of prompts, between 0 and 1, not {held_out}.")
    sides: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        sides[is_held_out(row.prompt, held_out, seed)].append(row)
    return sides


def is_held_out(key: Any, share: float, seed: int = 0) -> bool:
    """Whether a key belongs to the share that is held out: sha256(seed, key) / 2^256 < share."""
    digest = hashlib.sha256(json.dumps([seed, key]).encode()).digest()
    return int.from_bytes(digest) < share * 2**256
