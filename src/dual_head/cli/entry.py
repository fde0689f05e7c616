"""The command `dual-head`: find a command and run it. Bad input gives one paragraph on stderr and exit code 2."""

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
MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")  # words of torch
ALLOCATIONS = 100_000  # of objects between two garbage collections
COMMANDS = discover("dual_head.cli", "run", noun="command")


def start() -> int:
    """Run one command and end the process: the entry point of `dual-head`."""
    # Importing torch and transformers makes half a million objects that live as long as the process. Collecting garbage
    # every 700 allocations, and once more at exit, takes a third of the time of a short command.
    gc.set_threshold(ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        return main()
    finally:
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Huge pages for large tensors on Linux: chunks of logits are allocated and freed all the time, and a page fault
    # costs as much as a hundred multiplications. torch reads the variable at its first large tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(_Printable())
    try:
        _require_utf8(arguments)
        arguments = translate(arguments)
        name = arguments[0] if arguments else ""
        # Progress bars of loading are for a terminal, but not for one that a reply is streamed to.
        if name == "generate" or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if name and not name.startswith("-"):
            if name in COMMANDS.files:
                from dual_head.cli.paths import require_paths

                require_paths(arguments[1:])
            with signals_raised():
                # Imported late: `dual-head --help` should not wait for torch.
                return COMMANDS.load(name)(arguments[1:])
        _parser().parse_args(arguments or ["--help"])
    except DualHeadError as error:
        _print(f"{error}", arguments)
        return 2
    except BrokenPipeError:  # `dual-head ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (refusal := _refusal(error)) is None:
            raise
        _print(refusal, arguments)
        return 2
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        print(f"dual-head: {'terminated' if terminated else 'interrupted'}", file=sys.stderr, flush=True)
        if terminated:
            end_by(signal.SIGTERM)
        return 130
    return 0


def _print(message: str, arguments: Sequence[str]) -> None:
    """Print why a command ended, without its secrets."""
    from dual_head.console.secrets import secret_values
    from dual_head.console.terminal import shown

    print(f"dual-head: {shown(message, *secret_values(arguments))}", file=sys.stderr)


class _Printable(logging.Formatter):
    """Formats warnings that no other handler takes."""

    def format(self, record: logging.LogRecord) -> str:
        from dual_head.console.terminal import shown

        return shown(super().format(record))


def _refusal(error: Exception) -> str | None:
    """The message for a failure of the machine, or a missing package; None for any other error, which is a bug."""
    # Libraries say so of options of theirs, such as --use_liger_kernel, when the option first counts.
    if isinstance(error, ImportError) and "pip install" in str(error):
        return f"a package is not installed. {reason(error)}"
    if isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY):
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
    """Refuse arguments that are not text, which no tokenizer and no file could hold."""
    for argument in arguments:
        if not argument.isascii() and re.search("[\ud800-\udfff]", argument):
            raise DualHeadError(f"The argument {argument!r} is not UTF-8 text. Rename the file, or type it again.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dual-head",
        usage="dual-head COMMAND [options]",
        description="Align a frozen language model at test time with small trained heads.",
        epilog=f"commands:\n{listed(COMMANDS.summaries())}\n\n'dual-head COMMAND --help' lists the options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dual-head {__version__}")
    return parser
