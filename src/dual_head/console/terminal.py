"""Text on a terminal or in a log: characters that would move the cursor, recolour or reorder text are escaped."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dual_head.console.secrets import masked

if TYPE_CHECKING:
    from rich.table import Table

# C0 except newline and tab, DEL, C1; overrides of text direction; halves of characters, which no stream can write.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Escape control characters as Python does, such as \x1b or \u202e; newlines and tabs stay."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shown(text: str, *secrets: str) -> str:
    """Make text from elsewhere safe to print: secrets masked, control characters escaped."""
    return printable(masked(text, *secrets))


def note(line: str) -> None:
    """Print one line on stderr, once for all processes of a run."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"dual-head: {printable(line)}", file=sys.stderr)


class Terminal(Console):
    """A console that prints texts as they are: without markup and emoji codes, with control characters escaped.

    plain_width: columns where the output is not a terminal; rich's own where it is None.
    """

    def __init__(self, *, plain_width: int | None = None, **options: Any):
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})
        if plain_width is not None and not self.is_terminal:
            self.width = plain_width

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string, also of a table's cell, into text that is safe to print."""
        return super().render_str(printable(text), **options)


def figures_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """A table whose first column names what the figures of its row are of."""
    from rich import box  # most commands print no table
    from rich.table import Table

    table = Table(columns[0], title=title, box=box.SIMPLE_HEAD)
    for name in columns[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for cells in rows:
        table.add_row(*cells)
    return table
