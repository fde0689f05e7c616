"""Signals that end a command: an exception first, so that half-written files are removed, then the signal itself."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 0.05  # seconds until a signal whose exception was lost is sent again


class Terminated(KeyboardInterrupt):
    """SIGTERM: a request to end this process."""


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, and lose no interrupt, for as long as the block lasts.

    Python drops an exception raised while it clears a weak reference or an object: that signal is sent again. One of
    several processes still ends at once: while it waits for the others in C, it could not raise.
    """
    alone = "RANK" not in os.environ and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process, hook = os.getpid(), sys.unraisablehook

    def stop(number: int, frame: Any) -> None:
        del frame
        if os.getpid() != process:  # a forked worker has nothing to remove
            end_by(number)
        raise Terminated

    def again(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
        threading.Timer(AGAIN, os.kill, (process, number)).start()

    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = again
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = hook


def end_by(number: int) -> None:
    """End this process by a signal, so that its parent sees that signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
