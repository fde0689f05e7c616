"""The command `dual-head`: parse, then call. Bad input is one paragraph on stderr and exit code 2."""

import argparse
import errno
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence

from dual_head import __version__
from dual_head.console.signals import Terminated, end_by, signals_raised
from dual_head.errors import DualHeadError
from dual_head.files.places import system_failure
from dual_head.files.reading import reason
from dual_head.options import discover
from dual_head.options.help import listed
from dual_head.seed_names import translate

REFUSED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP)  # by the system
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALLOCATIONS = 100_000  # of objects between two searches for garbage
COMMANDS = discover("dual_head.cli", "run", noun="command")


def start() -> int:
    """Run one command as the work of this process: the entry point of `dual-head`."""
    # Half a million objects are made by importing torch and transformers, and live as long as the process: looking for
    # garbage among them, every 700 allocations and once more at the exit, takes a third of the time of a short command.
    gc.set_threshold(ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        return main()
    finally:
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Huge pages for large tensors on Linux: logits come and go by the chunk, and a page fault costs as much as a
    # hundred multiplications. torch reads it at its first large tensor; whoever has set it is left alone.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(_Shown())
    try:
        _require_utf8(arguments)
        arguments = translate(arguments)
        name = arguments[0] if arguments else ""
        # Bars of loading are for a terminal, and not for the one that a reply is streamed to.
        if name == "generate" or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if name and not name.startswith("-"):
            if name in COMMANDS.files:
                from dual_head.cli.paths import require_paths

                require_paths(arguments[1:])
            with signals_raised():
                # Imported only now: `dual-head --help` should not wait for torch.
                return COMMANDS.load(name)(arguments[1:])
        _parser().parse_args(arguments or ["--help"])
    except DualHeadError as error:
        _say(f"{error}", arguments)
        return 2
    except BrokenPipeError:  # `dual-head ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (refusal := _refusal(error)) is None:
            raise
        _say(refusal, arguments)
        return 2
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        print(f"dual-head: {'terminated' if terminated else 'interrupted'}", file=sys.stderr, flush=True)
        if terminated:
            end_by(signal.SIGTERM)
        return 130
    return 0


def _say(what: str, arguments: Sequence[str]) -> None:
    """Print why a command ended."""
    from dual_head.console.secrets import secret_values
    from dual_head.console.terminal import shown

    print(f"dual-head: {shown(what, *secret_values(arguments))}", file=sys.stderr)


class _Shown(logging.Formatter):
    """Writes warnings that nobody else handles."""

    def format(self, record: logging.LogRecord) -> str:
        from dual_head.console.terminal import shown

        return shown(super().format(record))


def _refusal(error: Exception) -> str | None:
    """What to say of a failure that is the machine's; None of any other, which is a bug."""
    words = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
    if isinstance(error, MemoryError) or any(w in str(error) for w in words):
        return f"there is not enough memory. {reason(error)} Give smaller numbers, or a smaller batch."
    failure = system_failure(error)
    if failure and failure.errno in FULL:
        return (
            f"writing failed ({failure}). Free some space or choose another output folder, and run the same command "
            "again: it goes on from the last whole checkpoint."
        )
    if failure and failure.errno in REFUSED:
        return f"'{failure.filename}' cannot be used: {reason(failure)} Choose another place or name."
    return None


def _require_utf8(arguments: Sequence[str]) -> None:
    """Refuse what is no text: neither a tokenizer nor a file that is written could hold it."""
    for argument in arguments:
        if not argument.isascii() and re.search("[\ud800-\udfff]", argument):
            raise DualHeadError(f"The argument {argument!r} is not UTF-8 text. Rename the file, or type it again.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dual-head",
        usage="dual-head COMMAND [options]",
        description="Align a frozen language model at test time with small trained heads.",
        epilog=f"commands:\n{listed(COMMANDS.summaries())}\n\n'dual-head COMMAND --help' tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dual-head {__version__}")
    return parser
