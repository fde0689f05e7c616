"""Guides that are computed in one pass over the pairs, not trained in steps: what says how, with its options."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dual_head.data.collate import PairBatch


@dataclass(frozen=True, kw_only=True)
class FitOptions(ABC):
    """The options of a fit, and the fit itself."""

    @abstractmethod
    def fit(self, model: Any, name: str, batches: Iterable[PairBatch]) -> dict[str, Any]:
        """Fill the guide of that name of an aligned model from batches on its device; figures of it for the report."""
