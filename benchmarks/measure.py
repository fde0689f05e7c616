"""How sides are measured: in turns, in one process, as ratios of the same round; their memory; on what machine.

A shared machine drifts by the minute, and whoever runs second runs warmer. So every round runs each side once, each
round begins with another side, and a ratio compares two times of one round. Memory is the process's own high-water
mark, as Linux keeps it. It knows no model, no side and no table.
"""

import ctypes
import gc
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Semaphore
from typing import Any

import torch

PROCESS = Path("/proc/self")
RESET_HIGH_WATER_MARK = "5"  # man 5 proc, clear_refs
# A processor without products in bf16 has tables of its own, and no rows of them: there they are slower than fp32.
BF16 = "AVX512" in torch.backends.cpu.get_cpu_capability()
KIND = "" if BF16 else f"-{torch.backends.cpu.get_cpu_capability().lower()}"
PACKAGES = ("torch", "transformers", "trl", "peft")
MB = 2**20
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def begin_with_huge_pages() -> None:
    """Start this script again with memory as the dual-head command asks for it, for every side alike."""
    if HUGE_PAGES not in os.environ:  # torch reads it at its first tensor, and to import a library can make one
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, HUGE_PAGES: "1"})


# ---- time ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """One side's seconds in every counted round, and their ratios to the reference's in the same round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios; below 1 is faster than the reference."""
        return statistics.median(self.ratios)

    def over(self, other: "Timing") -> list[float]:
        """Its times in those of another side in the same round, the smallest first."""
        return sorted(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio."""
        return min(self.ratios), max(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the median ratio, from the order of the ratios, as if they did not depend on one another."""
        ordered, middle = sorted(self.ratios), (len(self.ratios) - 1) / 2
        away = 1.96 * math.sqrt(len(ordered)) / 2
        return ordered[max(0, math.floor(middle - away))], ordered[min(len(ordered) - 1, math.ceil(middle + away))]


def compare(
    sides: Mapping[str, Callable[[], Any]],
    *,
    runs: int = 5,
    warmup: int = 1,
    reference: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every side once a round, `warmup` rounds uncounted and `runs` counted, each round beginning one side later.

    reference: the side that ratios are to, the first where it is not given. Errors: no sides, an unknown reference,
    no counted round.
    """
    reference = next(iter(sides), "") if reference is None else reference
    if reference not in sides:
        raise ValueError(f"The reference '{reference}' is none of the sides: {', '.join(sides) or 'there are none'}.")
    if runs < 1 or warmup < 0:
        raise ValueError(f"At least one round must count, and warmup cannot be {warmup} nor runs {runs}.")
    names = list(sides)
    rounds: list[dict[str, float]] = []
    gc.collect()
    gc.freeze()  # so that the collections between runs look at what the runs left, and not at every library
    try:
        for i in range(warmup + runs):
            first = i % len(names)
            rounds.append({name: _seconds(sides[name], clock) for name in names[first:] + names[:first]})
    finally:
        gc.unfreeze()
    counted = rounds[warmup:]
    return {
        name: Timing(
            seconds=tuple(row[name] for row in counted), ratios=tuple(row[name] / row[reference] for row in counted)
        )
        for name in names
    }


def compare_tokens(
    sides: Mapping[str, Callable[[Any], Any]], *, runs: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Time every token of sides that stream as many, taking turns by the token: a machine that drifts does so for all.

    sides: each is given a streamer that it puts its prompt and then every token to; the first is the reference. Each
    runs in a thread of its own, and one at a time: let torch have one thread, or every side's own ones are in the way.
    Gives the times of all tokens but the first, and the median seconds until that.
    """
    names, tokens, firsts = list(sides), {name: [] for name in sides}, {name: [] for name in sides}
    for _ in range(runs):
        gc.collect()
        took = _in_turns(sides, clock)
        for name in names:
            prompt, first, *others, _ = took[name]  # the last is what comes after the last token
            firsts[name].append(prompt + first)
            tokens[name] += others
    ratios = {name: [a / b for a, b in zip(tokens[name], tokens[names[0]], strict=True)] for name in names}
    times = {name: Timing(tuple(tokens[name]), tuple(ratios[name])) for name in names}
    return times, {name: statistics.median(firsts[name]) for name in names}


def _in_turns(sides: Mapping[str, Callable[[Any], Any]], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every turn of every side, from its start or its last token to its next token or its end."""
    turns, took = {name: Turn() for name in sides}, {name: list[float]() for name in sides}
    with ThreadPoolExecutor(len(sides)) as pool:
        running = {name: pool.submit(turns[name].run, side) for name, side in sides.items()}
        waiting = list(sides)
        while waiting:
            for name in list(waiting):
                started = clock()
                turns[name].take()
                took[name].append(clock() - started)
                if turns[name].over:
                    waiting.remove(name)
            if any(turn.over and running[name].exception() for name, turn in turns.items()):
                for name in waiting:
                    turns[name].drop()
                waiting = []
            waiting = waiting[1:] + waiting[:1]
        for name, turn in turns.items():
            if not turn.dropped:
                running[name].result()  # or what it raised
    return took


class Turn:
    """A streamer that lets its side run until the next token each time it is told to."""

    def __init__(self) -> None:
        self.over = self.dropped = False
        self._go, self._back = Semaphore(0), Semaphore(0)

    def run(self, side: Callable[[Any], Any]) -> None:
        """Run the side, in its own thread."""
        try:
            self._wait()
            side(self)
        finally:
            self.over = True
            self._back.release()

    def take(self) -> None:
        """Let the side run until its next token or its end."""
        self._go.release()
        self._back.acquire()

    def drop(self) -> None:
        """Let the side run no further."""
        self.dropped = True
        self._go.release()

    def put(self, value: Any) -> None:
        """Take a prompt or a token, and wait."""
        del value
        self._back.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self.dropped:
            raise RuntimeError("Another side failed.")

    def end(self) -> None:
        """Do nothing: `run` sees the end."""


def _seconds(side: Callable[[], Any], clock: Callable[[], float]) -> float:
    gc.collect()  # so that no side pays for what another left
    started = clock()
    side()
    return clock() - started


# ---- memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """MiB the process held before a call, and at most during it."""

    floor: float
    peak: float

    @property
    def over(self) -> float:
        """What the call added at its peak."""
        return self.peak - self.floor


def peak_memory(run: Callable[[], Any]) -> Memory:
    """Call `run` once and see how far the process's resident memory rose; what it returns is held until then.

    What the process freed before is given back first, so that reusing it counts. Measure each side in a process of
    its own: libraries keep buffers from the first call on. Errors: not Linux, where no mark can be reset.
    """
    mark = PROCESS / "clear_refs"
    if not mark.exists():
        raise OSError("Peak memory is read from Linux's /proc/self, which is not here. Measure it on Linux.")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; other C libraries keep little
        trim(0)
    mark.write_text(RESET_HIGH_WATER_MARK)
    floor = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    del result
    return Memory(floor, max(floor, peak))


def _status(name: str) -> float:
    (line,) = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024  # given in KiB


# ---- machine ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on, and when."""

    cpu: str
    cores: int
    threads: int  # of torch
    memory_gb: int
    versions: dict[str, str]
    date: str
    commit: str  # with "+" where the code that was measured had changes since

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def machine() -> Machine:
    """Describe this machine, the versions that run on it and the commit of the repository."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB / 1024
    return Machine(
        cpu=_cpu(),
        cores=cores,
        threads=torch.get_num_threads(),
        memory_gb=round(memory),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        date=time.strftime("%Y-%m-%d"),
        commit=_commit(),
    )


def _cpu() -> str:
    """The processor's name, with the widest vector instructions that torch uses on it."""
    names: list[str] = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """The short commit of this checkout; "unknown" where there is no git or no repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    code = (":/src", ":/benchmarks", ":(top,exclude)benchmarks/results")  # collecting results is no change of it
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
