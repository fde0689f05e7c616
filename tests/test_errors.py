"""Errors say the remedy."""

import json

import pytest

from dual_head import DualHeadError
from dual_head.errors import did_you_mean, require


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("helpfull", " Did you mean 'helpful'?"),
        ("harmles", " Did you mean 'harmless'?"),
        ("xyzzy", " Known: harmless, helpful."),
        ("", " Known: harmless, helpful."),
    ],
)
def test_the_nearest_name_is_offered_or_all_of_them(name, said):
    assert did_you_mean(name, ["helpful", "harmless"]) == said


@pytest.mark.parametrize(
    ("name", "nearest"), [("--dataset", "--dataset_name"), ("--model", "--model_name_or_path"), ("--see", "--seed")]
)
def test_a_name_that_was_cut_short_is_nearer_than_one_of_its_length(name, nearest):
    options = ["--data_seed", "--dataset_name", "--hub_model_id", "--model_name_or_path", "--seed"]
    assert did_you_mean(name, options) == f" Did you mean '{nearest}'?"


def test_options_may_come_from_an_iterator():
    assert did_you_mean("a", iter(["b", "ab"])) == " Did you mean 'ab'?"


def test_bad_input_is_a_value_error_too():
    assert issubclass(DualHeadError, ValueError)


def test_an_installed_package_is_imported():
    assert require("json", "unused") is json


def test_an_absent_package_is_named_with_the_line_that_installs_it():
    with pytest.raises(DualHeadError, match=r"'no_such_package' is not installed.*pip install 'dual-head\[extra\]'"):
        require("no_such_package", "extra")
