"""The benchmarks by name: each file that ends in `BENCHMARK = ...`, and entry points of `dual_head.benchmarks`."""

from typing import Any

from dual_head.evaluate.benchmarks.base import Benchmark
from dual_head.options import discover

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark"]


def _flaw(value: Any) -> str | None:
    is_benchmark = isinstance(value, type) and issubclass(value, Benchmark)
    return None if is_benchmark else "BENCHMARK is not a subclass of dual_head.evaluate.benchmarks.Benchmark"


BENCHMARKS = discover(__name__, "BENCHMARK", noun="benchmark", check=_flaw)


def load_benchmark(name: str) -> Benchmark:
    """Make the benchmark of a name. Errors: an unknown or a broken one."""
    return BENCHMARKS.load(name)(name)
