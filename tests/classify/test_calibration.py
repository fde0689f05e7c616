"""A temperature is fitted where the NLL is least, never harms the rows it is fitted on, and is kept beside weights."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head import DualHeadError
from dual_head.classify import calibration
from dual_head.classify.calibration import (
    CALIBRATION_FILE,
    Calibration,
    cross_fitted,
    fit_temperature,
    load_calibration,
)
from dual_head.classify.evaluate.metrics import report


def drawn(rows: int, classes: int, *, temperature: float, seed: int = 0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 3
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


def nll(logits, labels, temperature: float) -> float:
    return report(logits, labels, temperature=temperature, resamples=1)["nll"]["mean"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature):
    logits, labels = drawn(20000, 4, temperature=temperature)
    assert fit_temperature(logits, labels).temperature == pytest.approx(temperature, rel=0.05)


def test_no_temperature_near_the_fitted_one_is_better():
    logits, labels = drawn(300, 3, temperature=2)
    found = fit_temperature(logits, labels)
    best = nll(logits, labels, found.temperature)
    assert found.nll_after == pytest.approx(best)
    assert found.nll_before == pytest.approx(nll(logits, labels, 1))
    assert all(best <= nll(logits, labels, found.temperature * by) for by in (0.9, 0.999, 1.001, 1.1))


def test_two_rows_by_hand():
    # p(right) of both rows is sigmoid(2 / T), right in three of four: 2 / T = log 3
    logits = np.array([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, [0, 0, 0, 1]).temperature == pytest.approx(2 / math.log(3))


@pytest.mark.parametrize("seed", range(20))
def test_the_rows_fitted_on_are_never_worse_off(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rng.integers(1, 12), 3)) * 10 ** rng.uniform(-2, 2)
    labels = rng.integers(0, 3, len(logits))
    found = fit_temperature(logits, labels)
    assert found.nll_after is not None
    assert found.nll_before is not None
    assert found.nll_after <= found.nll_before
    assert 0.01 <= found.temperature <= 100


def test_rows_all_wrong_are_as_unsure_as_a_temperature_makes_them():
    found = fit_temperature([[1.0, 0.0], [0.0, 1.0]], [1, 0])
    assert found.temperature == pytest.approx(100)
    assert not found.unbounded


def test_rows_all_right_have_no_temperature_to_keep(tmp_path):
    found = fit_temperature([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert found.unbounded
    with pytest.raises(DualHeadError, match="every prediction would be certain"):
        found.save(weights(tmp_path))
    assert not (tmp_path / CALIBRATION_FILE).exists()


def test_a_half_that_is_all_right_leaves_the_other_half_at_1():
    logits, labels = np.tile([[3.0, 0.0], [0.0, 1.0]], (50, 1)), np.tile([0, 1], 50)
    labels[7] = 0  # the only error, so one half has none
    found = cross_fitted(logits, labels)
    assert found[7] == 1.0
    fitted = fit_temperature(logits[found == 1], labels[found == 1]).temperature
    assert (found[found != 1] == fitted).all()
    assert nll(logits, labels, found) < 1  # 100 logits apart at T = 0.01, and wrong


def test_several_labels_have_one_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 3)) * 3
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits / 2))).astype(float)
    assert fit_temperature(logits, labels, multi_label=True).temperature == pytest.approx(2, rel=0.05)


def test_soft_labels_count_by_their_shares():
    logits = np.array([[2.0, 0.0]])
    assert fit_temperature(logits, [[0.75, 0.25]]).temperature == pytest.approx(2 / math.log(3))


def test_a_row_is_judged_by_a_temperature_it_had_no_part_in():
    logits, labels = drawn(400, 3, temperature=2)
    found = cross_fitted(logits, labels)
    changed = labels.copy()
    changed[7] = (labels[7] + 1) % 3
    other = cross_fitted(logits, changed)
    own_half = found == found[7]
    assert (other[own_half] == found[own_half]).all()
    assert (other[~own_half] != found[~own_half]).all()
    assert 100 < own_half.sum() < 300


def test_a_group_is_on_one_side():
    logits, labels = drawn(100, 3, temperature=2)
    groups = np.repeat(np.arange(20), 5)
    found = cross_fitted(logits, labels, groups=groups.tolist())
    assert all(len(set(found[groups == group].tolist())) == 1 for group in range(20))
    assert len(set(found.tolist())) == 2


WRITTEN = Calibration(temperature=1.7, rows=3, nll_before=0.5, nll_after=0.4, fitted_on="dev.json")


def weights(folder: Path, said: bytes = b"weights") -> Path:
    """A classifier's folder, as far as a calibration looks into it."""
    folder.mkdir(exist_ok=True)
    (folder / SAFE_WEIGHTS_NAME).write_bytes(said)
    return folder


def test_a_calibration_is_read_back_and_is_1_where_there_is_none(tmp_path):
    assert load_calibration(weights(tmp_path)) == Calibration()
    WRITTEN.save(tmp_path)
    found = load_calibration(tmp_path)
    assert replace(found, weights="") == WRITTEN
    assert len(found.weights) == 64


def test_a_calibration_of_other_weights_is_left_aside_with_a_warning(tmp_path):
    WRITTEN.save(weights(tmp_path))
    weights(tmp_path, b"trained again")
    with pytest.warns(UserWarning, match="--calibrate"):
        assert load_calibration(tmp_path) == Calibration()
    (tmp_path / CALIBRATION_FILE).write_text('{"temperature": 1.7}')
    with pytest.warns(UserWarning, match="does not belong"):
        assert load_calibration(tmp_path) == Calibration()


def test_there_is_nothing_to_calibrate_where_there_are_no_weights(tmp_path):
    with pytest.raises(DualHeadError, match=f"no {SAFE_WEIGHTS_NAME}"):
        WRITTEN.save(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The classifier owner/name on the hub: its folder."""
    folder = weights(tmp_path / "hub")

    def cached_file(source, name, **options):
        if source not in ("owner/name", str(folder)):
            raise OSError("no such repository\nand more")
        assert (folder / name).is_file() or not options.get("_raise_exceptions_for_missing_entries", True)
        return str(folder / name) if (folder / name).is_file() else None

    monkeypatch.setattr(calibration, "cached_file", cached_file)
    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    return folder


def test_a_calibration_on_the_hub_is_fetched(hub):
    assert load_calibration("owner/name") == Calibration()
    WRITTEN.save(hub)
    assert load_calibration("owner/name").temperature == 1.7
    with pytest.raises(DualHeadError, match="no such repository Say the temperature"):
        load_calibration("owner/other")


@pytest.mark.parametrize("text", ["", "[]", '{"temperature": 0}', '{"temperatur": 1.0}', '{"temperature": "hot"}'])
def test_a_file_that_is_no_calibration_is_refused(tmp_path, text):
    (tmp_path / CALIBRATION_FILE).write_text(text)
    with pytest.raises(DualHeadError):
        load_calibration(tmp_path)


def test_what_cannot_be_fitted_is_refused():
    for logits, labels in (
        (np.zeros((0, 2)), []),
        (np.zeros((2, 2)), [0]),
        (np.zeros((1, 2)), [2]),
        ([[np.inf, 0]], [0]),
    ):
        with pytest.raises(DualHeadError):
            fit_temperature(logits, labels)
    with pytest.raises(DualHeadError, match="at least 2"):
        cross_fitted([[1.0, 0.0]], [0])
