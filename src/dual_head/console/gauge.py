"""Progress of long work, on stderr: a bar on a terminal, elsewhere an occasional line with an estimate."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dual_head.console.terminal import printable

SETTLED = 5  # seconds: shorter work writes no line
SPACING = 30  # seconds between two lines
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, as a number of one to three digits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


class Gauge:
    """The progress of work that takes long, from `with` to its end.

    name: what is counted; total: how many there are, None if unknown; done: how many were there before; quiet: show
    nothing. Without a terminal, the first line comes once a step shows that much time is left.
    """

    def __init__(self, name: str, total: int | None = None, *, done: int = 0, quiet: bool = False):
        self.name, self.total, self.before, self.done, self.quiet = printable(name), total, done, done, quiet
        name_column = TextColumn("{task.description}", markup=False)
        columns = (name_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.lines = not sys.stderr.isatty()
        self._bars = Progress(*columns, console=Console(stderr=True), disable=quiet or self.lines)
        self._bar = self._bars.add_task(self.name, total=total, completed=done)
        self._started, self._last = time.monotonic(), None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, by: int = 1) -> None:
        """Count more."""
        self.reach(self.done + by)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set the count to `done`, and the total to `total` if it is known only now."""
        self.done, self.total = done, self.total if total is None else total
        self._bars.update(self._bar, completed=done, total=self.total)
        due = self._last is None or time.monotonic() - self._last > SPACING or done == self.total
        if due and self.whole > SETTLED:
            self.line(f"{self.name}: {done:,}" + (f" of {self.total:,}" if self.total is not None else ""))

    def line(self, text: str) -> None:
        """Write a line with the time that is left; nothing on a terminal, where the bar shows it."""
        self._last = time.monotonic()
        spent = self._last - self._started
        predictable = self.total is not None and self.before < self.done < self.total
        clock = f"about {duration(self.whole - spent)} to go" if predictable else f"after {duration(spent)}"
        if self.lines and not self.quiet:
            print(f"{text}; {clock}", file=sys.stderr, flush=True)

    @property
    def whole(self) -> float:
        """Seconds from the start to the end at the speed so far; those so far if the total is unknown."""
        spent, steps = time.monotonic() - self._started, self.done - self.before
        if self.total is None or steps <= 0 or self.done >= self.total:
            return spent
        return spent * (self.total - self.before) / steps


def gauged(items: Iterable[Item], name: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Item]:
    """Iterate over items and show a `Gauge` of them; total: their number, if they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Gauge(name, total, quiet=quiet) as gauge:
        for item in items:
            yield item
            gauge.advance()
