"""Classifiers on rows with known labels: what is compared is the same rows, and no row judges its own temperature."""

import numpy as np
import pytest
from classifiers import some_texts, write_dhrd

from dual_head import DualHeadError
from dual_head.classify import Example
from dual_head.classify.evaluate.metrics import report
from dual_head.classify.evaluate.run import Measured, bins, lines, measure, require_same_rows, summarise
from dual_head.classify.predict import Predictor

# Given a, b, b, a; true a, b, a, a
LOGITS = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
LABELS = np.array([0, 1, 0, 0])


def measured(logits=LOGITS, labels=LABELS, names=("a", "b"), groups=("", "", "", ""), **more) -> Measured:
    listed = [label if isinstance(label, int) else tuple(label) for label in np.asarray(labels).tolist()]
    examples = [Example(f"t{i}", label, group=g) for i, (label, g) in enumerate(zip(listed, groups, strict=True))]
    given = {"temperature": 1.0, "multi_label": False, "truncated": 0, **more}
    return Measured(examples=examples, names=names, logits=np.asarray(logits), labels=np.asarray(labels), **given)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(write_dhrd(tmp_path_factory.mktemp("evaluation")), device="cpu", window=16)


def test_rows_are_right_where_the_given_label_is_theirs():
    assert measured().right().tolist() == [True, True, False, True]
    shares = measured(labels=[[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [1.0, 0.0]])
    assert shares.right().tolist() == [True, True, False, True]
    several = measured(LOGITS - 0.5, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], multi_label=True)
    assert several.right().tolist() == [True, True, True, False]
    soft = measured(LOGITS - 0.5, [[0.9, 0.1], [0.2, 0.8], [0.0, 0.6], [0.7, 0.9]], multi_label=True)
    assert soft.right().tolist() == [True, True, True, False]


def test_only_rows_with_a_label_are_measured(predictor):
    texts = some_texts(10)
    examples = [Example(text, None if i % 2 else 0, group="g") for i, text in enumerate(texts)]
    found = measure(predictor, examples)
    assert [row.input for row in found.examples] == texts[::2]
    assert np.array_equal(found.logits, [one.logits for one in predictor.score(texts[::2])])
    assert found.groups == ["g"] * 5
    with pytest.raises(DualHeadError, match="No row has a label"):
        measure(predictor, [Example("good0")])


def test_a_mixture_of_labels_and_shares_is_shares(predictor):
    found = measure(predictor, [Example("good0", 1), Example("good1", (0.25, 0.75))])
    assert found.labels.tolist() == [[0, 1], [0.25, 0.75]]


def test_a_calibrated_row_is_judged_by_the_other_half(predictor):
    rng = np.random.default_rng(0)
    examples = [Example(text, int(rng.integers(2))) for text in some_texts(40)]
    plain, warm = measure(predictor, examples), measure(predictor, examples, calibrate=True, fitted_on="here")
    assert plain.calibration is None
    assert warm.calibration is not None
    assert (warm.calibration.rows, warm.calibration.fitted_on) == (40, "here")
    assert warm.calibration.temperature > 1  # random labels: sure of nothing
    assert len(set(np.asarray(warm.temperature).tolist())) == 2
    own = summarise({"it": warm})["classifiers"]["it"]
    assert own["calibration"]["uncalibrated"]["nll"] == pytest.approx(plain.figures()["nll"]["mean"])
    assert own["nll"]["mean"] < own["calibration"]["uncalibrated"]["nll"]
    assert own["accuracy"] == plain.figures()["accuracy"]


def test_a_summary_has_each_classifier_the_majority_and_the_differences():
    perfect = measured(np.eye(2)[LABELS] * 5)
    found = summarise({"first": measured(), "second": perfect}, resamples=200)
    assert found["classifiers"]["first"]["accuracy"]["mean"] == 3 / 4
    assert found["classifiers"]["second"]["accuracy"]["mean"] == 1
    assert found["majority"]["label"] == "a"
    assert found["majority"]["accuracy"]["mean"] == 3 / 4
    assert found["majority"]["macro_f1"]["mean"] == pytest.approx((6 / 7 + 0) / 2)
    (name, difference), *none = found["differences"].items()
    assert not none
    assert (name, difference["from"], difference["accuracy"]["difference"]) == ("second", "first", 1 / 4)
    assert difference["macro_f1"]["difference"] == pytest.approx(1 - (4 / 5 + 2 / 3) / 2)
    assert "ece" not in difference
    assert (difference["only_first"], difference["only_second"]) == (0, 1)


def test_groups_are_compared_by_f1a_and_by_whole_groups_too():
    groups = ("p", "p", "q", "q")
    found = summarise({"first": measured(groups=groups), "second": measured(np.eye(2)[LABELS] * 5, groups=groups)})
    own = found["differences"]["second"]
    assert own["f1a"]["difference"] == pytest.approx(1 - 2 / 3)  # one b of two that were given is one
    assert own["em"]["difference"] == pytest.approx(1 / 2)


def test_what_several_labels_a_row_get_wholly_right_is_not_called_accuracy():
    labels = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]
    first, second = (measured(logits, labels, multi_label=True) for logits in (LOGITS - 0.5, 9 * np.array(labels) - 4))
    own = summarise({"first": first, "second": second})["differences"]["second"]
    assert own["exact_match"]["difference"] == pytest.approx(1 / 4)
    assert "accuracy" not in own
    assert {"macro_f1", "micro_f1", "nll"} <= own.keys()


def test_groups_of_the_rows_are_resampled_together():
    logits, labels = np.repeat(LOGITS, 50, 0), np.repeat(LABELS, 50)
    groups = np.repeat(["p", "q", "r", "s"], 50).tolist()
    found = summarise({"it": measured(logits, labels, groups=groups)})["classifiers"]["it"]
    assert found["groups"] == 4
    assert found["em"]["mean"] == 3 / 4
    assert found["accuracy"]["interval"] == report(logits, labels, groups=groups)["accuracy"]["interval"]


def test_labels_in_another_order_are_the_same_labels():
    turned = measured(LOGITS[:, ::-1], 1 - LABELS, names=("b", "a"))
    require_same_rows(measured(), turned, "turned")
    assert turned.right().tolist() == measured().right().tolist()
    groups = ("p", "p", "q", "q")
    turned = measured(LOGITS[:, ::-1], 1 - LABELS, names=("b", "a"), groups=groups)
    found = summarise({"it": measured(groups=groups), "turned": turned}, resamples=100)
    assert found["classifiers"]["it"] == found["classifiers"]["turned"]  # F1a is of the same label
    assert {value["difference"] for value in found["differences"]["turned"].values() if isinstance(value, dict)} == {0}


def test_shares_of_labels_in_another_order_are_turned_with_them():
    shares = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [1.0, 0.0]])
    turned = measured(LOGITS[:, ::-1], shares[:, ::-1], names=("b", "a"))
    found = summarise({"it": measured(labels=shares), "turned": turned}, resamples=100)["classifiers"]
    assert found["it"] == found["turned"]


def test_rows_that_are_all_right_leave_the_temperature_as_it_is(predictor):
    texts = some_texts(12)
    given = [one.index for one in predictor.predict(texts)]
    found = measure(predictor, [Example(*pair) for pair in zip(texts, given, strict=True)], calibrate=True)
    assert found.calibration is None
    assert found.temperature == predictor.temperature


def test_other_labels_and_other_rows_are_not_compared():
    with pytest.raises(DualHeadError, match="tells a, c apart"):
        require_same_rows(measured(), measured(names=("a", "c")), "other")
    with pytest.raises(DualHeadError, match="other rows"):
        require_same_rows(measured(), measured(labels=1 - LABELS), "other")
    with pytest.raises(DualHeadError, match="other rows"):
        require_same_rows(measured(), measured(LOGITS[:3], LABELS[:3], groups=("", "", "")), "other")


def test_every_row_has_a_record():
    third = list(lines("it", measured(groups=("", "", "q", ""))))[2]
    assert third["probabilities"]["b"] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)
    del third["probabilities"]
    assert third == {"classifier": "it", "index": 2, "group": "q", "label": "a", "given": "b", "right": False}
    several = measured(LOGITS - 0.5, [[1.0, 0.0]] * 4, multi_label=True)
    second = list(lines("it", several))[1]
    assert (second["label"], second["given"]) == ({"a": 1, "b": 0}, ["b"])


def test_bins_are_of_what_is_given_or_of_every_label():
    assert sum(point["rows"] for point in bins(measured())) == 4
    assert sum(point["accuracy"] * point["rows"] for point in bins(measured())) == pytest.approx(3)
    several = measured(LOGITS - 0.5, [[1.0, 0.0]] * 4, multi_label=True)
    assert sum(point["rows"] for point in bins(several)) == 8


def test_pictures_are_drawn_of_any_number_of_classifiers_and_labels(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from dual_head.classify.evaluate.plots import confusion_picture, reliability_picture

    several = measured(LOGITS - 0.5, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], multi_label=True)
    for found in ({"it": measured()}, {str(i): measured() for i in range(2)}, {"several": several}):
        figures = summarise(found, resamples=100)["classifiers"]
        confusion_picture(figures, tmp_path / "confusion.png")
        reliability_picture({name: bins(own) for name, own in found.items()}, tmp_path / "reliability.png")
        for file in tmp_path.glob("*.png"):
            assert len(set(Image.open(file).convert("L").get_flattened_data())) > 20


@pytest.mark.parametrize("classes", [300, 1001])
def test_a_picture_does_not_grow_with_the_number_of_classes(tmp_path, classes):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from dual_head.classify.evaluate.plots import confusion_picture

    names = [str(i) for i in range(classes)]
    figures = {"classes": names, "confusion": np.eye(classes, dtype=int).tolist(), "rows": classes}
    confusion_picture({"it": figures}, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 3000
