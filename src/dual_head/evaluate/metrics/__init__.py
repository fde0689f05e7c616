"""What replies and systems are like: a metric is one function of a file here, in the order of the report's columns."""

from dual_head.evaluate.metrics import replies, rewards, models  # isort: skip - which register their metrics in order
from dual_head.evaluate.metrics.base import METRICS, Measured, Metric, Tools, about, measure, metric, summary

__all__ = [
    "METRICS",
    "Measured",
    "Metric",
    "Tools",
    "about",
    "measure",
    "metric",
    "models",
    "replies",
    "rewards",
    "summary",
]
