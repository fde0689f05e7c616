"""Options are declared once: a field is a flag, a key of YAML, and the bounds of its numbers."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import pytest

from dual_head import DualHeadError
from dual_head.options import Options, option, require_effect
from dual_head.options.flags import OptionParser
from dual_head.options.texts import flag_kind


class Milk(Enum):
    NONE = "none"
    OAT = "oat"


@dataclass(kw_only=True)
class Kettle(Options):
    water: float = option(0.5, "litres", heading="kettle", above=0, most=2)
    lid: bool = option(True, "close it")


@dataclass(kw_only=True)
class Brew(Kettle):
    pot: str = option(help="where to brew", positional=True)
    leaves: str = option(help="what to brew", flags=("tea",))
    cups: int = option(2, "cups to pour", least=1, below=9)
    kind: Literal["black", "green"] = option("black", "colour")
    milk: Milk | str = option("none", "beside it")
    guest: list[str] | None = option(None, "who drinks", repeat=True)
    times: list[int] = option([3, 4], "minutes", least=1)
    note: str | dict[str, int] | None = option(None, "for the guest", metavar="TEXT")
    herbs: str | None = option(None, "with commas between", commas=True)
    iced: bool = option(False, "cold")


def read(*arguments: object, **more) -> Brew:
    parser = OptionParser(Brew, command="brew", description="Brew.", **more)
    (brew,) = parser.read([*map(str, arguments)])
    return brew


@pytest.fixture
def config(tmp_path):
    def write(text: str):
        (tmp_path / "brew.yaml").write_text(text)
        return ["--config", tmp_path / "brew.yaml"]

    return write


def test_flags_are_read_as_their_fields_types():
    brew = read("pot", "--tea", "assam", "--cups", "3", "--water=1.5", "--kind", "green", "--milk", "oat", "--iced")
    assert brew == Brew(pot="pot", leaves="assam", cups=3, water=1.5, kind="green", milk="oat", iced=True)
    assert isinstance(brew.cups, int)
    assert read("pot", "--leaves", "x", "--times", "1", "2", "--guest", "a", "--guest", "b").guest == ["a", "b"]


@pytest.mark.parametrize("text", ["-1,0,1", "-1e-3", "-.5", "-2"])
def test_a_value_may_begin_as_a_negative_number_does(text):
    assert read("pot", "--tea", "x", "--herbs", text).herbs == text


def test_a_switch_that_is_on_has_one_to_leave_it_off():
    assert read("pot", "--leaves", "x").lid is True
    assert read("pot", "--leaves", "x", "--no_lid").lid is False


def test_switches_take_no_word_that_may_be_a_positional_argument():
    assert read("--iced", "pot", "--leaves", "x").pot == "pot"

    @dataclass(kw_only=True)
    class Bare(Options):
        iced: bool = option(False, "cold")

    for words, iced in (("--iced", True), ("--iced true", True), ("--iced no", False), ("", False)):
        (bare,) = OptionParser(Bare, command="bare", description=None).read(words.split())
        assert bare.iced is iced


def test_a_file_gives_every_option_and_flags_override_it(config):
    file = config(
        "{pot: p, tea: assam, cups: 4, guest: [a, b], times: 7, note: {x: 1}, herbs: [mint, sage], lid: false}"
    )
    brew = read(*file)
    assert brew == Brew(
        pot="p", leaves="assam", cups=4, guest=["a", "b"], times=[7], note={"x": 1}, herbs="mint,sage", lid=False
    )
    brew = read("mine", *file, "--cups", "5", "--guest", "c")
    assert (brew.pot, brew.cups, brew.guest) == ("mine", 5, ["c"])


def test_null_is_none_where_that_may_be_and_the_default_elsewhere(config):
    brew = read("p", "--leaves", "x", *config("{guest: null, cups: null}"))
    assert (brew.guest, brew.cups) == (None, 2)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["--cups", "0"], "--cups must be at least 1 and below 9, not 0."),
        (["--cups", "9"], "--cups must be at least 1 and below 9, not 9."),
        (["--water", "0"], "--water must be above 0 and at most 2, not 0.0."),
        (["--water", "nan"], "--water must be a finite number below 2^53, not nan."),
        (["--water", "inf"], "--water must be a finite number below 2^53, not inf."),
        (["--cups", str(2**53)], "--cups must be a finite number below 2^53"),
        (["--times", "3", "0"], "--times must be at least 1, not 0."),
        (["--kind", "geen"], "--kind cannot be 'geen'. Did you mean 'green'?"),
        (["--kups", "3"], "Unknown option '--kups'. Did you mean '--cups'?"),
    ],
)
def test_flags_that_cannot_be_are_refused_by_name(arguments, refusal):
    with pytest.raises(DualHeadError) as refused:
        read("pot", "--leaves", "x", *arguments)
    assert refusal in str(refused.value)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("kups: 3", "Did you mean 'cups'?"),
        ("cups: 0", "--cups must be at least 1"),
        ("cups: many", "'cups' in"),
        ("cups: [1, 2]", "cannot be [1, 2]"),
        ("cups: .nan", "cannot be nan"),
        ("water: .nan", "must be a finite number"),
        ("kind: red", "cannot be 'red'. It must be one of black, green."),
        ("tea: a\nleaves: b", "gives 'leaves' twice, as tea and as leaves"),
        ("config: other.yaml", "Unknown key 'config'"),
        ("[1]", "must be a mapping of options to values"),
    ],
)
def test_keys_and_values_of_a_file_that_cannot_be_are_refused_by_name(config, text, refusal):
    with pytest.raises(DualHeadError) as refused:
        read("pot", *([] if "leaves" in text else ["--leaves", "x"]), *config(text))
    assert refusal in str(refused.value)


def test_bounds_hold_for_python_too():
    with pytest.raises(DualHeadError, match="--cups must be at least 1"):
        Brew(pot="p", leaves="x", cups=0)


def test_options_that_nothing_reads_are_refused_together_with_what_brings_them():
    brew = Brew(pot="p", leaves="x", cups=3, guest=["a"], iced=True, times=[3, 4])
    guests = "guests, and nobody comes here. Invite one"
    require_effect(brew, (("cups", "guest"), True, guests), (("times", "lid"), False, guests))  # of the defaults
    with pytest.raises(DualHeadError) as refused:
        require_effect(brew, (("iced",), True, "summer"), (("guest", "cups", "times"), 0, guests))
    assert str(refused.value) == f"--cups, --guest are of {guests}, or leave them out."
    with pytest.raises(DualHeadError, match=r"^--iced is of ice, and none is here\. Make some, or leave it out\.$"):
        require_effect(brew, (("iced",), "", "ice, and none is here. Make some"))


def test_sections_group_and_aliases_stand_for_options(config, capsys):
    more = {"sections": ("kitchen",), "aliases": {"mugs": ("cups",)}, "constants": {"recipe": "brew"}}
    brew = read("pot", "--leaves", "x", *config("recipe: brew\nkitchen: {mugs: 5, water: 1}"), **more)
    assert (brew.cups, brew.water) == (5, 1.0)
    assert "kitchen.mugs is cups" in capsys.readouterr().err
    with pytest.raises(DualHeadError, match=r"'kitchen' in .* groups options"):
        read("pot", "--leaves", "x", *config("kitchen: 3"), **more)
    with pytest.raises(DualHeadError, match="is for the recipe 'cake', and this command for 'brew'"):
        read("pot", "--leaves", "x", *config("recipe: cake"), **more)


def test_help_shows_headings_bounds_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        read("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "usage: dual-head brew POT --leaves LEAVES [options] Brew." in shown
    assert "kettle: --water VALUE litres [0.5]" in shown
    assert "--leaves, --tea VALUE what to brew" in shown
    assert "--kind {black,green} colour [black]" in shown
    assert "--times VALUE minutes [3 4]" in shown
    assert "--note TEXT for the guest" in shown


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (int | None, (int, False)),
        (str | list[str], (str, True)),
        (dict | str | None, (str, False)),
        (dict[str, bool] | None, (dict, False)),
        (Milk | str, (Milk, False)),
        (bool | None, (bool, False)),
        (list[float], (float, True)),
        (Options | None, (None, False)),
    ],
)
def test_a_flag_is_of_the_one_type_that_a_text_can_be(hint, kind):
    assert flag_kind(hint) == kind
