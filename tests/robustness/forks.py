"""`dual-head` commands in forked children of one process that has imported everything: a trial costs no import.

    ended = run(["inspect", folder])          # ended.kind: ok, refused, traceback, hang, signal 9, rc=130, ...
    first = start(["train", ...]); os.killpg(first.pid, signal.SIGTERM); ended = first.wait()

The process that forks is a server of its own, started at the first use: pytest's has threads, which no fork survives.
Requests and replies are lines of JSON.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

FLAGS = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)  # of stdin, stdout and stderr

KILL = """
import os, signal
seen = 0
def audit(event, arguments):
    global seen
    if event == "open":
        counts = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        counts = event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link"}
    if counts and any(isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(FOLDER) for a in arguments):
        seen += 1
        if LOG:
            with open(LOG, "a") as stream:
                stream.write(f"{event} {arguments[0]}\\n")
        if seen == AT:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
"""


@dataclass
class Ended:
    """How a command ended; rc: negative where a signal ended it, None where its time was over."""

    rc: int | None
    out: str
    err: str
    seconds: float

    @property
    def kind(self) -> str:
        """One word for it: ok, refused (2, told in a paragraph), traceback, hang, "signal 9" or "rc=130"."""
        if self.rc is None:
            return "hang"
        if self.rc < 0:
            return f"signal {-self.rc}"
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        return {0: "ok", 2: "refused"}.get(self.rc, f"rc={self.rc}")


@dataclass
class Running:
    """A command in a child that leads a process group; `wait` once for its end."""

    pid: int
    files: tuple = field(repr=False)
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout: float = 120) -> Ended:
        """Wait for its end, and kill the group where that takes more than `timeout` seconds."""
        rc = _ask({"wait": self.pid, "seconds": timeout})
        seconds = time.monotonic() - self.started
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(rc, *texts, seconds)


def start(
    argv: Sequence[object],
    *,
    stdin: bytes = b"",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    memory: int = 12 << 30,
    user: int | None = None,
    before: str = "",
) -> Running:
    """Start a command; user: whose rights it has, where root runs this; before: Python that its child runs first."""
    _server()
    files = out, err, feed = tuple(tempfile.NamedTemporaryFile() for _ in range(3))  # noqa: SIM115
    feed.write(stdin)
    feed.flush()
    pid = _ask(
        {
            "argv": [str(part) for part in argv],
            "streams": [feed.name, out.name, err.name],
            "cwd": str(cwd) if cwd else None,
            "env": dict(env or {}),
            "memory": memory,
            "user": user,
            "before": before,
        }
    )
    feed.close()
    return Running(pid, files[:2])


def run(argv: Sequence[object], *, timeout: float = 120, **options) -> Ended:
    """Run a command to its end; options: those of `start`."""
    return start(argv, **options).wait(timeout)


def killing(folder: str | Path, at: int, log: str | Path | None = None) -> str:
    """Code for `before` that kills its process before the at-th file operation below `folder`; 0 kills never.

    log: a file elsewhere that gets a line for each of the operations.
    """
    return f"FOLDER, AT, LOG = {str(folder)!r}, {at}, {str(log) if log else None!r}\n{KILL}"


# ---- the server --------------------------------------------------------------------------------------------


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )

    def end() -> None:
        server.stdin.close()
        server.wait()
        server.stdout.close()

    atexit.register(end)
    return server


def _ask(request: Mapping) -> int | None:
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _preload() -> None:
    """Import what commands import: torch's and transformers' modules of models, and all of the project."""
    import dual_head

    models = ("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto")
    names = [module.name for module in pkgutil.walk_packages(dual_head.__path__, "dual_head.")]
    for name in ("torch", "datasets", "accelerate", "peft", "openai", *models, *names):
        if not name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(name)


def _child(request: Mapping, streams: Sequence[int]) -> int:
    """Run one command with these for stdin, stdout and stderr; its exit status."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update(request["env"])
    if request["cwd"]:
        os.chdir(request["cwd"])
    if request["user"] is not None:
        os.setgid(request["user"])
        os.setuid(request["user"])
    sys.argv = ["dual-head", *request["argv"]]
    from dual_head.cli import main

    try:
        exec(request["before"], {"sys": sys})
        return main(request["argv"]) or 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        return 130 if isinstance(error, KeyboardInterrupt) else 1


def _ended(pid: int, seconds: float) -> int | None:
    """The exit code of a child; None where it had to be killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no reply
    _preload()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            reply = _ended(request["wait"], request["seconds"])
        else:
            # Opened before the reply: whoever asked closes its own, and then they are gone.
            streams = [os.open(name, flags) for name, flags in zip(request["streams"], FLAGS, strict=True)]
            if not (reply := os.fork()):
                code = _child(request, streams)
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(BaseException):
                        stream.flush()
                os._exit(code & 255)
            for stream in streams:
                os.close(stream)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
