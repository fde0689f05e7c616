"""Columns and labels mean the same as flags, in JSON, in YAML and in Python, and what means nothing is refused."""

import pytest
import yaml

from dual_head.classify.data.columns import columns_of, labels_of
from dual_head.errors import DualHeadError


@pytest.mark.parametrize(
    "said",
    [
        "input=text,label=class",
        " input = text , label = class ",
        '{"input": "text", "label": "class"}',
        {"input": "text", "label": "class"},
    ],
)
def test_columns_are_said_in_any_spelling(said):
    assert columns_of(said) == {"input": "text", "label": "class"}


def test_an_input_may_be_of_several_columns_and_a_name_may_hold_a_sign_of_equality():
    assert columns_of('{"input": ["title", "text"]}') == {"input": ["title", "text"]}
    assert columns_of("input=a=b") == {"input": "a=b"}
    assert columns_of(None) is None


@pytest.mark.parametrize(
    "said",
    ["text", "", "input=", "input=a,input=b", "{", "[]", "{" * 200_000, 3, ["a"], {"input": 1}, {"input": []},
     {"label": ["a", "b"]}],
)  # fmt: skip
def test_columns_that_say_nothing_are_refused_with_both_spellings(said):
    with pytest.raises(DualHeadError, match="input=text,label=class, or in JSON"):
        columns_of(said)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("no, yes", ["no", "yes"]),
        ("-1,0,1", ["-1", "0", "1"]),
        ('["yes, really", "no"]', ["yes, really", "no"]),
        (yaml.safe_load("['yes, really', 'no']"), ["yes, really", "no"]),
        (yaml.safe_load("[0, 1]"), ["0", "1"]),
        (("no", "yes"), ["no", "yes"]),
        ("", None),
        (None, None),
    ],
)
def test_labels_keep_their_commas_in_a_list(said, names):
    assert labels_of(said) == names


@pytest.mark.parametrize("said", [yaml.safe_load("[no, yes]"), yaml.safe_load("on"), "[true, false]"])
def test_labels_that_yaml_reads_as_truth_values_are_to_be_quoted(said):
    with pytest.raises(DualHeadError, match="Quote them"):
        labels_of(said)


@pytest.mark.parametrize("said", ["a,,b", "[", '["a", ""]', [], [None], [1.5], {"a": 1}, 3])
def test_labels_without_names_are_refused(said):
    with pytest.raises(DualHeadError, match="--labels names the classes"):
        labels_of(said)
