"""Extensions are found by file and by entry point, imported when they are used, and refused by name when broken."""

import sys

import pytest

from dual_head import DualHeadError
from dual_head.options import discover


def losses():
    return discover("dual_head.losses", "OBJECTIVE", noun="loss", check=lambda x: None if callable(x) else "no call")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put modules beside the metadata of a distribution, as an installer leaves them."""

    def install(distribution: str, group: str, **modules: str) -> None:
        site = tmp_path / distribution
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        points = [f"{name} = {distribution}_{name}" for name in modules]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *points]))
        for name, source in modules.items():
            (site / f"{distribution}_{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, f"{distribution}_{name}", raising=False)
        monkeypatch.syspath_prepend(str(site))

    return install


def test_every_file_that_sets_the_attribute_is_an_extension_and_no_other():
    assert {"kl", "preference"} <= set(losses().names())
    assert "base" not in losses().names()


def test_an_entry_point_is_listed_with_the_first_line_of_its_module_and_loaded(install):
    install("acme", "dual_head.losses", hinge='"""A hinge.\n\nMore."""\nOBJECTIVE = max')
    assert "hinge" in losses().names()
    assert losses().summaries()["hinge"] == "A hinge."
    assert losses().load("hinge") is max


def test_extensions_are_not_imported_before_they_are_used(install):
    install("acme", "dual_head.losses", lazy="OBJECTIVE = max")
    losses().names()
    assert "acme_lazy" not in sys.modules


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "importing it ended in ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "importing it ended in SystemExit: 3"),
        ("LOSS = max", "it does not set OBJECTIVE"),
        ("OBJECTIVE = 3", "no call"),
    ],
)
def test_a_broken_extension_is_refused_by_name_and_keeps_no_other_from_working(install, source, reason):
    install("acme", "dual_head.losses", broken=source, sound="OBJECTIVE = max")
    with pytest.raises(DualHeadError) as refused:
        losses().load("broken")
    assert f"The loss 'broken' of acme 1.0, module 'acme_broken', is broken: {reason}." in str(refused.value)
    assert reason in losses().summaries()["broken"]
    assert losses().load("sound") is losses().load_all()["sound"] is max
    assert "broken" not in losses().load_all()


def test_two_packages_that_bring_one_name_are_both_named(install):
    install("acme", "dual_head.losses", hinge="OBJECTIVE = max")
    install("zeta", "dual_head.losses", hinge="OBJECTIVE = min")
    with pytest.raises(DualHeadError, match=r"zeta 1\.0 and acme 1\.0 both bring one\. Uninstall one"):
        losses().load("hinge")


def test_an_extension_does_not_replace_one_of_this_package(install):
    install("acme", "dual_head.losses", kl="OBJECTIVE = max")
    assert losses().load("kl") is not max
    assert losses().summaries()["kl (acme 1.0)"] == "broken: dual-head has a loss of this name"


def test_an_unknown_name_is_refused_with_the_nearest_installed_ones_included(install):
    install("acme", "dual_head.losses", hinge="OBJECTIVE = max")
    with pytest.raises(DualHeadError, match=r"Unknown loss 'hing'\. Did you mean 'hinge'\?.*install that package"):
        losses().load("hing")


def test_a_class_is_named_by_the_file_or_the_entry_point_it_comes_from(install):
    install("acme", "dual_head.losses", hinge="class Hinge:\n    pass\nOBJECTIVE = Hinge")
    assert losses().name_of(losses().load("kl")()) == "kl"
    assert losses().name_of(losses().load("hinge")()) == "hinge"
    with pytest.raises(DualHeadError, match=r"no entry point of the group 'dual_head\.losses' names that module"):
        losses().name_of(object())
