"""Texts of flags as values."""

import pytest

from dual_head import DualHeadError
from dual_head.options.texts import parse_alpha


@pytest.mark.parametrize(
    ("text", "alpha"),
    [(None, None), ("0.5", 0.5), ("help=0.8, harm=-1", {"help": 0.8, "harm": -1.0}), ("one=1", {"one": 1.0})],
)
def test_alpha_is_one_number_or_one_for_each_guide(text, alpha):
    assert parse_alpha(text) == alpha


@pytest.mark.parametrize(
    ("text", "reason"),
    [("much", "must be a number"), ("a=1,b", "must be a number"), ("a=1=2", "must be a number"), ("a=1,a=2", "twice")],
)
def test_any_other_alpha_is_refused(text, reason):
    with pytest.raises(DualHeadError, match=reason):
        parse_alpha(text)
