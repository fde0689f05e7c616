"""Work that several processes share: a task is done once, by whoever claims it, and what is done is skipped.

It knows files and locks, and nothing of what is done.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """Something to be done once: file is there when it is done, and has in it what `whole` looks for."""

    file: Path
    do: Callable[[], Any]
    whole: Callable[[Path], bool] = Path.is_file

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.whole(self.file)


def work(folder: Path, tasks: Sequence[Task]) -> None:
    """Do what is not done, beside other processes that do the same in this folder; return when all of it is done."""
    while pending := [task for task in tasks if not task.done]:
        idle = True
        for task in pending:
            name = os.path.relpath(task.file, folder).replace("..", "up").replace(os.sep, "-")
            with claimed(folder / "claims" / name) as mine:
                if mine and not task.done:
                    idle, started = False, time.perf_counter()
                    task.do()
                    print(f"== {task.file} {time.perf_counter() - started:.0f} s", flush=True)
        if idle:
            time.sleep(1)  # another process is at it


@contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process is the only one that holds a file, or wait until it is; one that dies gives it back."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
