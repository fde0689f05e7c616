"""Controls change what the reasoning head learns, and nothing of what the class head does."""

from collections import Counter
from dataclasses import replace

import pytest

from dual_head.classify import Example
from dual_head.classify.train.controls import apply_control
from dual_head.errors import DualHeadError

ROWS = [Example(f"input {i}", i % 2, rationale=f"reason {i} of many words") for i in range(12)]
ROWS.append(Example("input without a reason", 0))


def rationales(rows: list[Example]) -> list[str]:
    return [row.rationale for row in rows]


@pytest.mark.parametrize(
    "control", ["none", "pooled", "input_lm", "label_only", "shuffled", "shuffled_in_class", "permuted"]
)
def test_inputs_and_labels_stay_as_they_are_under_every_control(control):
    found = apply_control(control, ROWS, seed=3).examples
    assert [(row.input, row.label) for row in found] == [(row.input, row.label) for row in ROWS]


def test_shuffled_gives_every_rationale_to_another_row():
    found = rationales(apply_control("shuffled", ROWS).examples)
    assert Counter(found) == Counter(rationales(ROWS))
    assert all(new != old for new, old in zip(found[:-1], rationales(ROWS)[:-1], strict=True))
    assert found[-1] == ""  # who had none gets none


def test_shuffled_in_class_stays_among_rows_of_a_label():
    found = apply_control("shuffled_in_class", ROWS).examples
    for row in found[:-1]:
        assert int(row.rationale.split()[1]) % 2 == row.label
        assert row.rationale.split()[1] != row.input.split()[1]


def test_shuffled_in_class_goes_by_the_largest_share_and_by_all_of_several_labels():
    shares = [replace(row, label=(0.6 + i / 100, 0.4 - i / 100)[:: 1 - 2 * (i % 2)]) for i, row in enumerate(ROWS[:12])]
    several = [replace(row, label=((1.0, 1.0), (0.0, 0.0))[i % 2]) for i, row in enumerate(ROWS[:12])]
    for rows in (shares, several):
        found = apply_control("shuffled_in_class", rows)
        moved = [(int(new.input.split()[1]), int(new.rationale.split()[1])) for new in found.examples]
        assert all(own != given and own % 2 == given % 2 for own, given in moved)
        assert found.note == ""


@pytest.mark.parametrize("control", ["shuffled", "shuffled_in_class"])
@pytest.mark.parametrize("seed", range(8))
def test_no_row_gets_another_explanation_of_its_own_input(control, seed):
    rows = [Example(f"input {i}", 0, rationale=f"{i} for reason {j}") for i in range(3) for j in range(3)]
    found = apply_control(control, rows, seed=seed).examples
    assert Counter(rationales(found)) == Counter(rationales(rows))
    assert all(row.input.split()[1] != row.rationale.split()[0] for row in found)


def test_rationales_that_nobody_can_swap_with_are_counted():
    rows = [*ROWS[:4], Example("lonely", 2, rationale="the only one of its label")]
    assert "1 of 5 rationales stay as they are" in apply_control("shuffled_in_class", rows).note


@pytest.mark.parametrize("control", ["shuffled", "shuffled_in_class", "permuted"])
def test_a_control_that_would_spoil_nothing_is_refused(control):
    rows = [Example("one", 0, rationale="same"), Example("other", 0, rationale="same")]
    with pytest.raises(DualHeadError, match=r"changes none of these 2 rationales.*another control"):
        apply_control(control, rows)


def test_permuted_keeps_the_words_of_each_rationale_and_not_their_order():
    found = rationales(apply_control("permuted", ROWS).examples)
    assert [sorted(text.split()) for text in found] == [sorted(text.split()) for text in rationales(ROWS)]
    assert found != rationales(ROWS)


def test_a_control_is_the_same_for_the_same_seed_alone():
    once, again, other = (rationales(apply_control("shuffled", ROWS, seed=seed).examples) for seed in (1, 1, 2))
    assert once == again != other


def test_what_has_no_rationale_has_no_weight_or_no_place_for_one():
    assert apply_control("pooled", ROWS).model == {"lm_weight": 0.0}
    assert apply_control("input_lm", ROWS).model == {"lm_scope": "everything"}
    assert set(rationales(apply_control("input_lm", ROWS).examples)) == {""}
    assert apply_control("label_only", ROWS).form == {"answer": "alone"}


def test_an_unknown_control_and_one_with_nothing_to_spoil_are_refused():
    with pytest.raises(DualHeadError, match="Did you mean 'shuffled'"):
        apply_control("shuffeld", ROWS)  # type: ignore[arg-type]
    with pytest.raises(DualHeadError, match="no row has one"):
        apply_control("permuted", [Example("input", 0)])
