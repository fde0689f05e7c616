"""Options from plain values: every mistake is named, nothing is guessed."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from dual_head import DualHeadError
from dual_head.options import build


@dataclass(frozen=True)
class Brew:
    strength: float = 1.0
    cups: int = 2
    rank: int | None = None
    milk: bool = False
    kind: Literal["black", "green"] = "black"
    steeped: int = field(default=0, init=False)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, Brew()),
        ({"strength": 3}, Brew(strength=3.0)),
        ({"strength": "5e-5"}, Brew(strength=5e-5)),  # how YAML reads a number without a point
        ({"cups": 4, "milk": True}, Brew(cups=4, milk=True)),
        ({"rank": 8}, Brew(rank=8)),
        ({"rank": None}, Brew()),
        ({"kind": "green"}, Brew(kind="green")),
    ],
)
def test_values_of_the_right_type_are_taken(given, read):
    assert build(Brew, given) == read


def test_a_whole_number_becomes_a_float():
    assert isinstance(build(Brew, {"strength": 3}).strength, float)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strenght": 1}, "Unknown option 'strenght' for Brew. Did you mean 'strength'?"),
        ({"xyzzy": 1}, "Unknown option 'xyzzy' for Brew. Known: cups, kind, milk, rank, strength."),
        ({"steeped": 1}, "Unknown option 'steeped'"),
        ({"strength": "strong"}, "Brew.strength must be float, not 'strong'."),
        ({"strength": True}, "Brew.strength must be float, not True."),
        ({"strength": None}, "Brew.strength must be float, not None."),
        ({"cups": 2.5}, "Brew.cups must be int, not 2.5."),
        ({"cups": "2"}, "Brew.cups must be int, not '2'."),
        ({"cups": True}, "Brew.cups must be int, not True."),
        ({"rank": "8"}, "Brew.rank must be int | None, not '8'."),
        ({"rank": True}, "Brew.rank must be int | None, not True."),
        ({"milk": 1}, "Brew.milk must be bool, not 1."),
        ({"milk": "yes"}, "Brew.milk must be bool, not 'yes'."),
        ({"kind": "white"}, "Brew.kind must be one of 'black', 'green', not 'white'."),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(given, said):
    with pytest.raises(DualHeadError) as refusal:
        build(Brew, given)
    assert said in str(refusal.value)


def test_an_option_for_what_takes_none_is_refused_by_its_name():
    @dataclass
    class Water:
        """Takes no options."""

    with pytest.raises(DualHeadError, match="Unknown option 'cups': Water has no options"):
        build(Water, {"cups": 1})
