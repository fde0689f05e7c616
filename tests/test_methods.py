"""Methods as values: options by path or by the paper's symbol, and the guides they train."""

import dataclasses

import pytest

from dual_head.errors import DualHeadError
from dual_head.guides.linear import LinearConfig
from dual_head.losses.kl import Kl
from dual_head.losses.norm import Norm
from dual_head.methods import Method, method, method_names

every_method = pytest.mark.parametrize("name", method_names())


def options(chosen: Method) -> dict:
    return dict(chosen.options())


def test_there_are_the_seeds_methods_the_baselines_and_ours():
    assert {"dual_head", "iav", "mav", "genarm", "dpo", "simpo", "reward", "hidden", "kto"} <= set(method_names())


@every_method
def test_every_symbol_of_a_paper_is_an_option(name):
    chosen = method(name)
    assert set(chosen.symbols.values()) <= options(chosen).keys()
    assert not chosen.symbols.keys() & options(chosen).keys()


@every_method
def test_its_own_options_change_nothing(name):
    chosen = method(name)
    assert chosen.with_options({}) == chosen
    assert chosen.with_options(options(chosen)) == chosen


@every_method
def test_a_method_trains_the_guide_named_after_it(name):
    assert method(name).guides() == {name: method(name).guide}


@every_method
def test_its_plain_values_hold_every_option(name):
    chosen, plain = method(name), method(name).as_dict()
    assert plain.pop("method") == name
    flat = {}
    for section, value in plain.items():
        nested = isinstance(value, dict)
        flat |= {f"{section}.{key}": own for key, own in value.items()} if nested else {section: value}
    assert flat == options(chosen)


def test_options_go_to_their_parts_by_path_or_symbol():
    chosen = method("iav").with_options({"beta": 0.5, "kl.weight": 2, "guide.rank": 4, "fusion": "probabilities"})
    assert (chosen.guide, chosen.fusion) == (LinearConfig(rank=4), "probabilities")
    by_name = {type(objective).__name__: objective for objective in chosen.objectives}
    assert (by_name["Preference"].beta, by_name["Kl"], by_name["Norm"]) == (0.5, Kl(weight=2.0), Norm(weight=0.01))
    assert options(method("iav"))["preference.beta"] == 0.1  # the method itself is as it was
    assert method("dpo").with_options({"beta": 0.5}).peer.beta == 0.5
    assert method("simpo").with_options({"gamma_ratio": 0.3}).peer.gamma_ratio == 0.3


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("iav", {"bata": 1.0}, "Unknown option 'bata' of iav. Did you mean 'beta'"),
        ("iav", {"guide.rnak": 1}, "Did you mean 'guide.rank'"),
        ("iav", {"kl.weight": "much"}, "weight must be float, not 'much'"),
        ("iav", {"kl.weight": -1.0}, "weight must not be negative"),
        ("iav", {"fusion": "mean"}, "mean"),
        ("iav", {"train_base_head": "yes"}, "train_base_head must be true or false, not 'yes'"),
        ("iav", {"train_base_head": None}, "train_base_head must be true or false, not None"),
        ("mav", {"train_base_head": True}, "Unknown option 'train_base_head' of mav"),
        ("dpo", {"peer.beta": 0.0}, "beta must be above 0"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(name, given, said):
    with pytest.raises(DualHeadError, match=said):
        method(name).with_options(given)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(DualHeadError, match=r"Unknown method 'genrm'\. Did you mean 'genarm'"):
        method("genrm")
    assert method("dual-head") is method("dual_head")


# ---- train_base_head ----------------------------------------------------------------------------------------


def kl_of(chosen: Method) -> str:
    return options(chosen)["kl.of"]


def test_a_trained_base_head_is_a_second_guide_held_to_the_backbone_by_the_divergence():
    trained = method("iav").with_options({"train_base_head": True})
    assert list(trained.guides()) == ["iav", "base_head"]
    assert trained.guides()["base_head"] == LinearConfig()
    assert kl_of(trained) == "base_head"
    assert (trained.as_dict()["train_base_head"], kl_of(method("iav"))) == (True, "policy")


def test_the_divergence_that_was_asked_for_is_the_one_that_is_taken():
    assert kl_of(method("iav").with_options({"train_base_head": True, "kl.of": "policy"})) == "policy"
    assert kl_of(method("iav").with_options({"train_base_head": False})) == "policy"


def test_options_on_top_keep_the_base_head_and_it_can_be_taken_back():
    trained = method("iav").with_options({"train_base_head": True})
    assert trained.with_options({"train_base_head": False}) == method("iav")
    of_policy = method("iav").with_options({"train_base_head": True, "kl.of": "policy"})
    assert kl_of(of_policy.with_options({"beta": 0.3})) == "policy"
    more = trained.with_options({"lambda_kl": 0.7})
    assert (kl_of(more), options(more)["kl.weight"], list(more.guides())) == ("base_head", 0.7, ["iav", "base_head"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iav", r"needs the guide 'base_head' to be trained\. Add train_base_head=true"),
        ("mav", "kl.of of mav must be policy, not 'base_head'"),
        ("dpo", "kl.of of dpo must be policy, not 'base_head'"),
    ],
)
def test_a_divergence_of_a_guide_that_is_not_trained_is_refused(name, message):
    with pytest.raises(DualHeadError, match=message):
        method(name).with_options({"kl.of": "base_head"})


def test_a_divergence_of_a_guide_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(DualHeadError, match=r"policy or base_head, not 'base_haed'\. Did you mean 'base_head'"):
        method("iav").with_options({"train_base_head": True, "kl.of": "base_haed"})


def test_a_method_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        method("iav").name = "other"  # type: ignore[misc]
