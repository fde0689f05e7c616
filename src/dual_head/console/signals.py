"""Signals that end a command: an exception first, so that what is half written is removed, then the signal itself.

It knows signals and processes, and nothing of commands.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 0.05  # seconds until a signal is sent again whose exception was lost


class Terminated(KeyboardInterrupt):
    """SIGTERM: somebody asked this process to end."""


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM comes, and no interrupt is lost, for as long as the block lasts.

    Python drops what is raised while it clears a weak reference or an object away: such a signal is sent again. One of
    several processes ends at once as before, since one that waits for the others in C would never get to raise.
    """
    alone = "RANK" not in os.environ and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process, hook = os.getpid(), sys.unraisablehook

    def stop(number: int, frame: Any) -> None:
        del frame
        if os.getpid() != process:  # a worker that was forked: nothing here is its to clear away
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
    """End this process by a signal, as whoever waits for it expects."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
