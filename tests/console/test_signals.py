"""A signal that ends a command raises first, wherever it comes, and then it ends the process as signals do."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time, weakref
from dual_head.console.signals import Terminated, end_by, signals_raised
NUMBER = getattr(signal, sys.argv[1])
class Owner: pass
def send(*_): os.kill(os.getpid(), NUMBER)
def lose(*_):
    send()
    for _ in range(1000): pass  # the handler runs in here, and Python drops what it raises
try:
    with signals_raised():
        if sys.argv[2] == "lost":
            owner = Owner()
            watched = weakref.ref(owner, lose)
            del owner
        elif sys.argv[2] == "worker":
            if not (pid := os.fork()):
                send()
                time.sleep(9)
                os._exit(0)
            print("worker", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        else:
            send()
        time.sleep(0.5)
        print("went on", flush=True)
except KeyboardInterrupt as stop:
    print(type(stop).__name__, flush=True)
    if isinstance(stop, Terminated):
        end_by(signal.SIGTERM)
"""


def run(number: str, how: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT, number, how]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment or None)


@pytest.mark.parametrize("how", ["at once", "lost"])
def test_sigterm_raises_and_then_ends_the_process(how):
    ended = run("SIGTERM", how)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("Terminated\n", "", -signal.SIGTERM)


@pytest.mark.parametrize("how", ["at once", "lost"])
def test_no_interrupt_is_lost(how):
    ended = run("SIGINT", how)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("KeyboardInterrupt\n", "", 0)


def test_a_worker_that_was_forked_ends_at_once():
    assert run("SIGTERM", "worker").stdout == f"worker {-signal.SIGTERM}\nwent on\n"


def test_one_of_several_processes_ends_at_once():
    """It may wait for the others where no exception can be raised."""
    ended = run("SIGTERM", "at once", RANK="1")
    assert (ended.stdout, ended.returncode) == ("", -signal.SIGTERM)
