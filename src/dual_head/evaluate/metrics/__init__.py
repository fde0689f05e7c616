"""The metrics: each file here that ends in `METRICS = (...)`, and entry points of the group `dual_head.metrics`.

The report's columns stand in the order of the files' names, and within a file in the order of its metrics.
"""

from typing import Any

from dual_head.evaluate.metrics.base import Measured, Metric, Tools
from dual_head.options import discover

__all__ = ["METRICS", "Measured", "Metric", "Tools", "load_metrics"]


def _flaw(value: Any) -> str | None:
    are_metrics = isinstance(value, tuple) and all(isinstance(metric, Metric) for metric in value)
    return None if are_metrics else "METRICS is not a tuple of dual_head.evaluate.metrics.Metric"


METRICS = discover(__name__, "METRICS", noun="file of metrics", check=_flaw)


def load_metrics() -> dict[str, Metric]:
    """Every metric by name."""
    return {metric.name: metric for metrics in METRICS.load_all().values() for metric in metrics}
