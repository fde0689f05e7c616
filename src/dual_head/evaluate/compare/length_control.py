"""Length-controlled win rates: what the judge would prefer, had both answers been equally long.

Source: Dubois, Galambosi, Liang, Hashimoto, "Length-Controlled AlpacaEval" (2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dual_head.errors import DualHeadError, require
from dual_head.stats import draws, percentiles

# AlpacaEval chooses an L1 penalty for each model by cross-validation: of the 25 published fits that were repeated,
# 15 match at inverse strength 21.5, the others at 2.8 or 167 and beyond. One smooth penalty between them stays within
# 0.1 points of all, and keeps the weights finite where one system always wins.
INVERSE_PENALTY = 100.0
GAMED_WEIGHT = 0.1  # of each of two gamed baselines, in AlpacaEval

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gamed:
    """Answers made long or short on purpose, which pin what length alone does to the judge; they get no constant.

    difficulty: [n]; delta: tanh of each one's standardised length difference [n]; moments: (sum delta y,
    sum difficulty y) of their preferences y, all that a logistic fit depends on. `gamed_baselines` makes one.
    """

    difficulty: Floats
    delta: Floats
    moments: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """Rate in [0, 1] at equal lengths; weights {"length", "difficulty", "constant"}, those that were fitted."""

    rate: float
    interval: tuple[float, float] | None
    weights: dict[str, float]


def length_controlled(
    preferences: ArrayLike,
    lengths_model: ArrayLike,
    lengths_baseline: ArrayLike,
    *,
    difficulty: ArrayLike | None = None,
    gamed: Gamed | None = None,
    questions: Sequence[str] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> LengthControlled:
    """Fit P(model preferred) = sigmoid(a tanh(d / std d) + b difficulty + c); rate = mean sigmoid(b difficulty + c).

    d: the baseline's length less the model's, in characters, all [n]; preferences: in [0, 1], as sure as the judge
    is. Without difficulty, which is known for AlpacaEval's instructions only, length and constant are fitted.
    questions: to which each row belongs, where one has several: the interval resamples questions; resamples 0: none.
    Errors: nothing to fit, other shapes, preferences outside [0, 1], gamed answers without difficulty.
    """
    rows = _rows(preferences, lengths_model, lengths_baseline, difficulty)
    if gamed is not None and difficulty is None:
        raise DualHeadError("Gamed baselines are fitted with the instructions' difficulty. Give difficulty as well.")
    if questions is not None and len(questions) != len(rows):
        raise DualHeadError(f"There are {len(rows)} preferences, of {len(questions)} questions. Name one for each.")
    fit = _Fit(rows, gamed)
    rate, weights = fit(np.ones(len(rows)))
    names = ("length", "constant") if difficulty is None else ("length", "difficulty", "constant")
    places = np.unique(np.arange(len(rows)) if questions is None else list(questions), return_inverse=True)[1]
    count = int(places.max()) + 1
    rates = [
        fit(np.bincount(draw, minlength=count)[places].astype(float))[0]
        for block in draws(count, resamples=resamples, seed=seed)
        for draw in block
    ]
    return LengthControlled(
        rate=rate,
        interval=percentiles(rates) if rates else None,
        weights=dict(zip(names, weights.tolist(), strict=True)),
    )


def gamed_baselines(
    lengths: Sequence[ArrayLike], lengths_baseline: ArrayLike, difficulty: ArrayLike, moments: tuple[float, float]
) -> Gamed:
    """Features of gamed baselines from the lengths of each, [baselines][n], and the moments of all together."""
    base, hard = np.asarray(lengths_baseline, dtype=float), np.asarray(difficulty, dtype=float)
    deltas = [_bounded(base - np.asarray(baseline, dtype=float), np.ones(len(base))) for baseline in lengths]
    return Gamed(difficulty=np.tile(hard, len(deltas)), delta=np.concatenate(deltas), moments=moments)


@dataclass(frozen=True)
class _Rows:
    """What is fitted, every array [n]."""

    preferences: Floats
    longer: Floats  # the baseline's length less the model's
    difficulty: Floats | None

    def __len__(self) -> int:
        return len(self.preferences)


def _rows(preferences: ArrayLike, model: ArrayLike, baseline: ArrayLike, difficulty: ArrayLike | None) -> _Rows:
    columns = {"preferences": preferences, "lengths_model": model, "lengths_baseline": baseline}
    arrays = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    if difficulty is not None:
        arrays["difficulty"] = np.asarray(difficulty, dtype=float)
    first = arrays["preferences"]
    for name, column in arrays.items():
        if column.ndim != 1 or len(column) != len(first) or not len(column) or not np.isfinite(column).all():
            raise DualHeadError(
                f"Length control needs one finite number per comparison, at least one: '{name}' has shape "
                f"{column.shape} and preferences have {first.shape}. Leave out comparisons without a verdict."
            )
    if first.min() < 0 or first.max() > 1:
        raise DualHeadError(
            f"Preferences are between 0 (the baseline's answer) and 1 (the model's); got {first.min():g} to "
            f"{first.max():g}. AlpacaEval's files have 1 to 2: take 1 off."
        )
    return _Rows(first, arrays["lengths_baseline"] - arrays["lengths_model"], arrays.get("difficulty"))


class _Fit:
    """Penalised logistic regression of one comparison, for any number of copies of each of its rows."""

    def __init__(self, rows: _Rows, gamed: Gamed | None):
        linear_model = require("sklearn.linear_model", "eval")
        self.rows = rows
        self.regression = linear_model.LogisticRegression(
            C=INVERSE_PENALTY, fit_intercept=False, solver="newton-cholesky", tol=1e-6
        )
        columns = [np.ones(len(rows))] if rows.difficulty is None else [rows.difficulty, np.ones(len(rows))]
        self.at_equal_length = np.stack([np.zeros(len(rows)), *columns], 1)  # [n, 2 or 3]
        self.gamed = np.zeros((0, self.at_equal_length.shape[1]))
        self.gamed_preferences = np.zeros(0)
        if gamed is not None:
            self.gamed = np.stack([gamed.delta, gamed.difficulty, np.zeros(len(gamed.delta))], 1)
            self.gamed_preferences = _preferences_with(self.gamed[:, :2], gamed.moments)

    def __call__(self, copies: Floats) -> tuple[float, Floats]:
        """Rate and weights with each row that often."""
        rows = self.at_equal_length.copy()
        rows[:, 0] = _bounded(self.rows.longer, copies)
        features = np.concatenate([rows, self.gamed])
        preferences = np.concatenate([self.rows.preferences, self.gamed_preferences])
        weights = np.concatenate([copies, np.full(len(self.gamed), GAMED_WEIGHT)])
        # A preference p is a won comparison of weight p and a lost one of weight 1 - p: the same likelihood.
        self.regression.fit(
            np.concatenate([features, features]),
            np.repeat([1, 0], len(features)),
            sample_weight=np.concatenate([weights * preferences, weights * (1 - preferences)]),
        )
        coefficients = self.regression.coef_[0]
        return float(np.average(_sigmoid(self.at_equal_length @ coefficients), weights=copies)), coefficients.copy()


def _bounded(longer: Floats, copies: Floats) -> Floats:
    """tanh(d / std d), the deviation with n - 1 over all copies of the rows; all zero where they differ alike."""
    mean = np.average(longer, weights=copies)
    spread = np.sqrt(copies @ (longer - mean) ** 2 / max(1.0, copies.sum() - 1))
    if spread > 0:
        return np.tanh(longer / spread)
    return np.zeros(len(longer))  # what never varies cannot be told from the constant


def _preferences_with(features: Floats, moments: tuple[float, float]) -> Floats:
    """Preferences in (0, 1) with features' y = moments, which stand for unknown ones: a fit sees no more of them."""
    target, weights = np.asarray(moments, dtype=float), np.zeros(2)
    for _ in range(50):
        preferences = _sigmoid(features @ weights)
        residual = target - features.T @ preferences
        if np.abs(residual).max() < 1e-9 * len(features):
            return preferences
        curvature = (features * (preferences * (1 - preferences))[:, None]).T @ features
        weights = weights + np.linalg.lstsq(curvature, residual)[0]
    raise DualHeadError(f"No preferences in [0, 1] have the moments {tuple(moments)}. Give those of these baselines.")


def _sigmoid(logits: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -logits))
