"""Classifiers on rows whose labels are known: figures with intervals, and differences row by row.

It knows predictors and examples; figures are `metrics`', temperatures `calibration`'s. It knows no file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dual_head.classify.calibration import Calibration, cross_fitted, fit_temperature, probabilities
from dual_head.classify.evaluate.differences import differences, mcnemar
from dual_head.classify.evaluate.metrics import MULTI_LABEL_CUT, Rows, as_rows, reliability, report
from dual_head.classify.predict import Predictor
from dual_head.classify.types import Example
from dual_head.errors import DualHeadError

__all__ = ["Measured", "bins", "label_array", "lines", "majority", "measure", "require_same_rows", "summarise"]

Floats = NDArray[np.float64]
DIGITS = 6  # of a probability


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A classifier on rows.

    logits [N, K]; labels [N] or [N, K]; temperature: of all rows or of each [N]; truncated: rows that were cut;
    calibration: what was fitted on these rows, None where nothing was.
    """

    examples: list[Example]
    names: tuple[str, ...]
    logits: NDArray[Any]
    labels: NDArray[Any]
    temperature: float | Floats
    multi_label: bool
    truncated: int
    calibration: Calibration | None = None

    @property
    def groups(self) -> list[str] | None:
        """The group of each row, None where no row has one."""
        groups = [example.group for example in self.examples]
        return groups if any(groups) else None

    def probabilities(self) -> Floats:
        """Of each class [N, K], calibrated."""
        return probabilities(self.logits, temperature=self.temperature, multi_label=self.multi_label)

    def assigned(self) -> NDArray[np.bool_]:
        """Which labels the classifier gives each row [N, K]."""
        if self.multi_label:
            return self.probabilities() >= MULTI_LABEL_CUT
        return np.eye(len(self.names), dtype=bool)[self.logits.argmax(1)]

    def truth(self) -> NDArray[np.bool_]:
        """Which labels each row has [N, K]: of shares, the largest; of several labels, those of half or more."""
        if self.multi_label:
            return self.labels >= MULTI_LABEL_CUT
        return np.eye(len(self.names), dtype=bool)[self.labels if self.labels.ndim == 1 else self.labels.argmax(1)]

    def right(self) -> NDArray[np.bool_]:
        """Which rows [N] get every label that they have, and no other."""
        return (self.assigned() == self.truth()).all(1)

    def rows(self) -> Rows:
        """These rows, ready to be measured under any weights."""
        kind = {"groups": self.groups, "multi_label": self.multi_label, "temperature": self.temperature}
        return as_rows(self.logits, self.labels, **kind)

    def figures(self, *, resamples: int = 2000) -> dict[str, Any]:
        """What `metrics.report` says of these rows."""
        return report(
            self.logits,
            self.labels,
            names=self.names,
            groups=self.groups,
            multi_label=self.multi_label,
            temperature=self.temperature,
            resamples=resamples,
        )


def measure(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    calibrate: bool = False,
    fitted_on: str = "",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda rows: rows,
) -> Measured:
    """Classify the examples that have a label.

    calibrate: fit a temperature on these rows; each row is then judged by one fitted on the half that it is not in.
    Where the rows have no least NLL (`Calibration.unbounded`), nothing is fitted: `calibration` stays None. fitted_on:
    a note for the calibration; progress: sees the rows go by. Errors: no row has a label.
    """
    rows = [example for example in examples if example.label is not None]
    if not rows:
        raise DualHeadError("No row has a label to hold predictions against. Check --columns, or use classify predict.")
    scored = list(progress(predictor.score(example.input for example in rows)))
    logits, labels = np.array([one.logits for one in scored]), label_array(rows, len(predictor.labels))
    measured = Measured(
        examples=rows,
        names=predictor.labels,
        logits=logits,
        labels=labels,
        temperature=predictor.temperature,
        multi_label=predictor.multi_label,
        truncated=sum(one.truncated for one in scored),
    )
    if not calibrate:
        return measured
    kind = {"multi_label": measured.multi_label}
    calibration = fit_temperature(logits, labels, fitted_on=fitted_on, **kind)
    if calibration.unbounded:
        return measured
    temperature = cross_fitted(logits, labels, groups=measured.groups, **kind)
    return replace(measured, temperature=temperature, calibration=calibration)


def label_array(rows: Sequence[Example], classes: int) -> NDArray[Any]:
    """Classes [N], or shares [N, K] where any row has shares or several labels."""
    values = [row.label for row in rows]
    if not any(isinstance(label, tuple) for label in values):
        return np.array(values, dtype=int)
    return np.array([label if isinstance(label, tuple) else np.eye(classes)[label] for label in values], dtype=float)


def require_same_rows(first: Measured, other: Measured, name: str) -> None:
    """Refuse to compare classifiers of other labels, or on rows of other labels. The order of the labels is free."""
    if sorted(first.names) != sorted(other.names):
        raise DualHeadError(
            f"'{name}' tells {', '.join(other.names)} apart, and the first classifier {', '.join(first.names)}. "
            "Classifiers of the same labels are compared; evaluate others one by one."
        )
    same_order = _in_order(other, first.names)
    if first.truth().shape != other.truth().shape or (first.truth() != same_order.truth()).any():
        raise DualHeadError(
            f"'{name}' reads other rows of the data than the first classifier: {len(other.examples)}, and "
            f"{len(first.examples)}. Say how both are to be read, with --format, --columns or --template."
        )


def _in_order(measured: Measured, names: tuple[str, ...]) -> Measured:
    """The same classifier with its labels in this order: F1a is of the second of two."""
    order = [measured.names.index(label) for label in names]

    def label(value: Any) -> Any:
        return (
            tuple(value[i] for i in order)
            if isinstance(value, tuple)
            else None
            if value is None
            else order.index(value)
        )

    labels = measured.labels
    return replace(
        measured,
        examples=[replace(row, label=label(row.label)) for row in measured.examples],
        names=names,
        logits=measured.logits[:, order],
        labels=np.argsort(order)[labels] if labels.ndim == 1 else labels[:, order],
    )


def summarise(classifiers: Mapping[str, Measured], *, resamples: int = 2000) -> dict[str, Any]:
    """Figures of each classifier, what always giving one label would score, and differences from the first.

    {"majority": {"label", metric: ...} or None, "classifiers": {name: figures}, "differences": {name: {"from", metric:
    {"difference", "interval"}, ..., "only_first", "only_second", "p_value"}}}; see `metrics.report` and `differences`.
    """
    (base, first), *others = (
        (name, _in_order(measured, next(iter(classifiers.values())).names)) for name, measured in classifiers.items()
    )
    return {
        "majority": majority(first, resamples),
        "classifiers": {name: _figures(measured, resamples) for name, measured in ((base, first), *others)},
        "differences": {
            name: {
                "from": base,
                **differences(first.rows(), other.rows(), resamples=resamples),
                **mcnemar(first.right(), other.right()),
            }
            for name, other in others
        },
    }


def _figures(measured: Measured, resamples: int) -> dict[str, Any]:
    figures = {"truncated": measured.truncated, **measured.figures(resamples=resamples)}
    if measured.calibration is not None:
        plain = report(measured.logits, measured.labels, multi_label=measured.multi_label, resamples=1)
        sure = ("nll", "brier", "ece", "adaptive_ece")
        before = {name: plain[name]["mean"] for name in sure if name in plain}
        figures["calibration"] = {**asdict(measured.calibration), "uncalibrated": before}
    return figures


def majority(measured: Measured, resamples: int = 2000) -> dict[str, Any] | None:
    """What always giving the label that most rows have would score; None where a row may have several."""
    if measured.multi_label:
        return None
    truth = measured.truth().argmax(1)
    most = int(np.bincount(truth).argmax())
    always = np.broadcast_to(np.eye(len(measured.names))[most], measured.logits.shape)
    figures = report(always, truth, groups=measured.groups, resamples=resamples)
    shown = {name: figures[name] for name in ("accuracy", "macro_f1", "f1a", "em") if name in figures}
    return {"label": measured.names[most], **shown}


def bins(measured: Measured) -> list[dict[str, Any]]:
    """The reliability of what is given, or of every label where a row may have several; see `metrics.reliability`."""
    shares = measured.probabilities()
    if measured.multi_label:
        return reliability(shares.ravel(), measured.truth().ravel())
    return reliability(shares.max(1), measured.right())


def lines(name: str, measured: Measured) -> Iterator[dict[str, Any]]:
    """One record for each row: label, what is given, whether that is right, probabilities."""
    shares, predicted, right = measured.probabilities(), measured.assigned(), measured.right()
    for i, example in enumerate(measured.examples):
        label: Any = example.label
        labels = [label for label, flag in zip(measured.names, predicted[i], strict=True) if flag]
        yield {
            "classifier": name,
            "index": i,
            **({"id": example.id} if example.id else {}),
            **({"group": example.group} if example.group else {}),
            "label": measured.names[label] if isinstance(label, int) else dict(zip(measured.names, label, strict=True)),
            "given": labels if measured.multi_label else labels[0],
            "right": bool(right[i]),
            "probabilities": dict(zip(measured.names, shares[i].round(DIGITS).tolist(), strict=True)),
        }
