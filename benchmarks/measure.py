"""How sides are measured: in turns, in one process, as ratios of the same round; their memory; on what machine.

A shared machine drifts by the minute, and whoever runs second runs warmer. So every round runs each side once, each
round begins with another side, and a ratio compares two times of one round. Memory is the process's own high-water
mark, as Linux keeps it. It knows no model, no side and no table.
"""

import ctypes
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PROCESS = Path("/proc/self")
RESET_HIGH_WATER_MARK = "5"  # man 5 proc, clear_refs
PACKAGES = ("torch", "transformers", "trl", "peft")
MB = 2**20


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

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio."""
        return min(self.ratios), max(self.ratios)


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
