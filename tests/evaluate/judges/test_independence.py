"""A model that a system is made of does not judge it, wherever a copy of it lies."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from files import write_adapter, write_backbone, write_classifier, write_guides

from dual_head import DualHeadError
from dual_head.evaluate.judges.independence import require_independent
from dual_head.evaluate.systems import open_system, parse_systems
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_model import RewardModelConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Guides that decode with a reward model, copies of all that they are made of, an adapter, and moved guides."""
    folder = tmp_path_factory.mktemp("systems")
    write_backbone(folder / "backbone")
    for seed, name in enumerate(("reward", "other")):
        write_classifier(folder / name, seed=seed)
    guides = {"args": RewardModelConfig(model=str(folder / "reward"), k=2)}
    write_guides(folder / "guides", folder / "backbone", guides)
    for name in ("backbone", "reward", "guides"):
        shutil.copytree(folder / name, folder / f"copy of {name}")
    write_adapter(folder / "adapter", folder / "backbone")
    backbone = write_backbone(folder / "there", seed=3)
    write_guides(folder / "moved", backbone, {"plain": LinearConfig()})
    backbone.rename(folder / "here")
    return folder


@pytest.mark.parametrize("judge", ["reward:{}/reward", "{}/copy of reward", "lm:{}/backbone", "lm:{}/copy of guides"])
def test_what_a_system_is_made_of_is_refused_as_its_judge(folders, judge):
    systems = [open_system(spec) for spec in parse_systems([f"guided={folders / 'guides'}"])]
    with pytest.raises(DualHeadError, match=r"(part of|the system) 'guided'.*not an independent judge.*--force"):
        require_independent(systems, ["", judge.format(folders)])


@pytest.mark.parametrize(
    ("system", "judge"),
    [
        ("best_of:2:{}/other:of:{}/guides", "reward:{}/other"),
        ("best_of:2:{}/copy of guides:of:{}/adapter", "{}/reward"),
        ("best_of:2:rule:concise:of:{}/guides", "lm:{}/copy of backbone"),
        ("{}/adapter", "lm:{}/copy of backbone"),
        ("{}/moved", "lm:{}/here"),
    ],
)
def test_a_model_that_chose_the_answers_or_lies_beneath_a_system_does_not_judge_it(folders, system, judge):
    (spec,) = parse_systems([f"made={system.replace('{}', str(folders))}"])
    opened = open_system(spec, backbone=str(folders / "here") if "moved" in system else None)
    with pytest.raises(DualHeadError, match=r"a part of 'made'.*not an independent judge.*--force"):
        require_independent([opened], [judge.format(folders)])


def test_a_model_of_the_hub_is_told_by_its_name():
    system: Any = SimpleNamespace(name="tuned", path="out/adapter", parts=["out/adapter", "hub/base"])
    with pytest.raises(DualHeadError, match="'hub/base' is a part of 'tuned', so"):
        require_independent([system], ["lm:hub/base"])
    require_independent([system], ["lm:hub/other"])


@pytest.mark.parametrize("judge", ["reward:{}/other", "rule", "rule:module:function", "openai:gpt", "module:function"])
def test_who_has_no_part_in_a_system_may_judge_it(folders, judge):
    systems = [open_system(spec) for spec in parse_systems([f"guided={folders / 'guides'}"])]
    require_independent(systems, [judge.format(folders)])


def test_a_rule_that_chose_the_answers_is_no_model_and_may_judge_them(folders):
    (spec,) = parse_systems([f"best=best_of:2:rule:concise:of:{folders / 'guides'}"])
    require_independent([open_system(spec)], ["rule:concise"])
