"""One temperature that makes a classifier as sure as it is right: softmax(l / T), the same labels.

Source: On Calibration of Modern Neural Networks (Guo et al. 2017). It knows logits, and a file beside the weights,
which says whose temperature it is: that of a classifier trained again in the same folder is another.
"""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from dual_head.backbone.checkpoint import find_file
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, file_digest
from dual_head.files.reading import read_json, reading
from dual_head.options import build

__all__ = [
    "CALIBRATION_FILE",
    "Calibration",
    "cross_fitted",
    "fit_temperature",
    "load_calibration",
    "log_probabilities",
    "probabilities",
]

Floats = NDArray[np.float64]
CALIBRATION_FILE = "calibration.json"
COLDEST, HOTTEST = 0.01, 100.0  # rows that are all right would have T = 0, rows of noise T = infinity
HALVINGS = 100


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, and what it was fitted on: rows, their mean NLL in nats at T = 1 and at this T, and a note.

    weights: sha256 of the classifier's weights file, filled in by `save`.
    """

    temperature: float = 1.0
    rows: int = 0
    nll_before: float | None = None
    nll_after: float | None = None
    fitted_on: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not math.isfinite(self.temperature):
            raise DualHeadError(f"A temperature is above 0, not {self.temperature}.")

    @property
    def unbounded(self) -> bool:
        """Whether colder was always better, as where all rows are right: at this T every prediction is certain."""
        return self.temperature <= COLDEST * (1 + 1e-9)

    def save(self, folder: str | Path) -> None:
        """Write calibration.json into a classifier's folder, whole or not at all.

        Errors: no weights in it, a temperature at which every prediction would be certain (`unbounded`).
        """
        if self.unbounded:
            raise DualHeadError(
                f"T = {self.temperature:g} is as cold as a temperature is fitted: every prediction would be certain. "
                "The rows it was fitted on are all right, or nearly so. Fit it on more rows, with errors among them."
            )
        if not (Path(folder) / SAFE_WEIGHTS_NAME).is_file():
            raise DualHeadError(f"'{folder}' has no {SAFE_WEIGHTS_NAME} to calibrate. Save the classifier there first.")
        sealed = replace(self, weights=_digest(folder))
        with atomic_folder(Path(folder)) as staging:
            (staging / CALIBRATION_FILE).write_text(json.dumps(asdict(sealed), indent=2) + "\n")


def load_calibration(source: str | Path) -> Calibration:
    """Read calibration.json of a folder or of a name on the hub; T = 1 where a classifier has none of its own.

    One that was fitted to other weights is left aside, with a warning. Errors: a damaged file.
    """
    file = _file(source)
    if file is None:
        return Calibration()
    remedy = "Delete it, or fit it again."
    with reading(f"'{file}' is not a calibration", remedy):
        calibration = build(Calibration, read_json(file, remedy))
    if calibration.weights == _digest(source):
        return calibration
    warnings.warn(
        f"'{file}' does not belong to the weights beside it, which were trained again, or does not say so, as older "
        "ones: T = 1 is used. Fit it again with classify evaluate --calibrate, or delete it.",
        stacklevel=2,
    )
    return Calibration()


def _file(source: str | Path) -> Path | None:
    if Path(source).is_dir():
        file = Path(source) / CALIBRATION_FILE
        return file if file.is_file() else None
    try:
        cached = cached_file(str(source), CALIBRATION_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise DualHeadError(
            f"Whether '{source}' has a {CALIBRATION_FILE} cannot be found out: {str(error).splitlines()[0]} "
            "Say the temperature (--temperature), or give a folder."
        ) from error
    return None if cached is None else Path(cached)


def _digest(source: str | Path) -> str:
    return file_digest(Path(find_file(str(source), SAFE_WEIGHTS_NAME)))["sha256"]


def log_probabilities(logits: ArrayLike) -> Floats:
    """log softmax over the last axis [N, K]."""
    z = np.asarray(logits, dtype=float)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def probabilities(logits: ArrayLike, *, temperature: ArrayLike = 1.0, multi_label: bool = False) -> Floats:
    """softmax(l / T), or sigmoid(l / T) of each label [N, K]; temperature T: a number, or one for each row [N]."""
    z = scaled(logits, temperature)
    return np.exp(-np.logaddexp(0, -z)) if multi_label else np.exp(log_probabilities(z))


def scaled(logits: ArrayLike, temperature: ArrayLike) -> Floats:
    """l / T [N, K] in float64. Errors: a temperature that is not above 0."""
    z, t = np.asarray(logits, dtype=float), np.asarray(temperature, dtype=float)
    if not (t > 0).all():
        raise DualHeadError(f"A temperature is above 0, not {temperature}.")
    return z / (t[:, None] if t.ndim else t)


def group_numbers(groups: Sequence[Any] | None, rows: int) -> NDArray[np.int64]:
    """Number of each row's group [N], from 0."""
    if groups is None:
        return np.arange(rows)
    if len(groups) != rows:
        raise DualHeadError(f"There are {rows} rows and groups of {len(groups)}. Give one for each row.")
    places: dict[Any, int] = {}
    keys = [(i,) if group in ("", None) else group for i, group in enumerate(groups)]
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=int)


def require_matching(logits: Floats, labels: NDArray[Any], multi_label: bool = False) -> None:
    """Refuse logits that are not finite [N, K], and labels that are neither classes [N] nor shares [N, K] of them."""
    fits = labels.shape in ((len(logits),), logits.shape) if logits.ndim == 2 else False
    if not fits or not len(logits) or (multi_label and labels.ndim != 2):
        raise DualHeadError(
            f"Logits are [rows, classes] and labels [rows] or [rows, classes], with at least one row; these are "
            f"{logits.shape} and {labels.shape}."
        )
    if not np.isfinite(logits).all():
        raise DualHeadError("Some logits are NaN or infinite. Classify with --dtype float32, or look at the model.")
    if labels.ndim == 1 and not ((labels >= 0) & (labels < logits.shape[1])).all():
        raise DualHeadError(f"Labels are classes 0 to {logits.shape[1] - 1}; leave out rows that have none.")


def fit_temperature(
    logits: ArrayLike, labels: ArrayLike, *, multi_label: bool = False, fitted_on: str = ""
) -> Calibration:
    """Fit T on held-out rows: argmin_T mean NLL of softmax(l / T), or of sigmoid(l / T) for several labels.

    logits [N, K]; labels [N], or [N, K] of shares or of zeros and ones. The NLL is convex in b = 1 / T, with slope
    mean over rows of sum_k (p_k - y_k) l_k, so that b is where the slope is 0, found by halving; T stays within
    [0.01, 100]. Rows that are all right have no least NLL: their T is the coldest, and `unbounded`. The NLL on these
    rows is never above that at T = 1. Errors: no rows, labels that do not fit.
    """
    z, y = np.asarray(logits, dtype=float), np.asarray(labels)
    require_matching(z, y)
    y = np.eye(z.shape[1])[y.astype(int)] if y.ndim == 1 else y.astype(float)
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = probabilities(z * math.exp(middle), multi_label=multi_label)
        low, high = (low, middle) if ((p - y) * z).sum() > 0 else (middle, high)
    before = _nll(z, y, multi_label)
    temperature = min(max(math.exp(-(low + high) / 2), COLDEST), HOTTEST)
    after = _nll(z / temperature, y, multi_label)
    if not after < before:
        temperature, after = 1.0, before
    return Calibration(temperature=temperature, rows=len(z), nll_before=before, nll_after=after, fitted_on=fitted_on)


def cross_fitted(
    logits: ArrayLike, labels: ArrayLike, *, groups: Any = None, multi_label: bool = False, seed: int = 0
) -> Floats:
    """A temperature for each row [N], fitted on the half of the rows (of the groups) that it is not in.

    So one set of rows can both fit a temperature and say what it does, and no row judges what it was fitted on. A half
    that has none (`Calibration.unbounded`) leaves the other at T = 1. Errors: fewer than two rows or groups.
    """
    z, targets = np.asarray(logits, dtype=float), np.asarray(labels)
    group = group_numbers(groups, len(z))
    count = int(group.max(initial=-1)) + 1
    if count < 2:
        raise DualHeadError("A temperature is fitted on one half of the rows and judged on the other: give at least 2.")
    half = np.random.default_rng(seed).permutation(count)[group] % 2
    temperatures = np.empty(len(z))
    for fold in (0, 1):
        other = half != fold
        fitted = fit_temperature(z[other], targets[other], multi_label=multi_label)
        temperatures[~other] = 1.0 if fitted.unbounded else fitted.temperature
    return temperatures


def _nll(z: Floats, y: Floats, multi_label: bool) -> float:
    if multi_label:
        return float((np.logaddexp(0, z) - y * z).mean())
    return float(-(y * log_probabilities(z)).sum(1).mean())
