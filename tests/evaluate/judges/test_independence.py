"""A model that a system is made of does not judge it, wherever a copy of it lies."""

import shutil
from pathlib import Path

import pytest
from files import write_backbone, write_classifier, write_guides

from dual_head import DualHeadError
from dual_head.evaluate.judges.independence import require_independent
from dual_head.evaluate.systems import open_system, parse_systems
from dual_head.guides.reward_model import RewardModelConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Guides that decode with a reward model, and copies of all that they are made of."""
    folder = tmp_path_factory.mktemp("systems")
    write_backbone(folder / "backbone")
    for seed, name in enumerate(("reward", "other")):
        write_classifier(folder / name, seed=seed)
    guides = {"args": RewardModelConfig(model=str(folder / "reward"), k=2)}
    write_guides(folder / "guides", folder / "backbone", guides)
    for name in ("backbone", "reward", "guides"):
        shutil.copytree(folder / name, folder / f"copy of {name}")
    return folder


@pytest.mark.parametrize("judge", ["reward:{}/reward", "{}/copy of reward", "lm:{}/backbone", "lm:{}/copy of guides"])
def test_what_a_system_is_made_of_is_refused_as_its_judge(folders, judge):
    systems = [open_system(spec) for spec in parse_systems([f"guided={folders / 'guides'}"])]
    with pytest.raises(DualHeadError, match=r"part of 'guided'.*not an independent judge.*--force"):
        require_independent(systems, ["", judge.format(folders)])


@pytest.mark.parametrize("judge", ["reward:{}/other", "rule", "rule:module:function", "openai:gpt", "module:function"])
def test_who_has_no_part_in_a_system_may_judge_it(folders, judge):
    systems = [open_system(spec) for spec in parse_systems([f"guided={folders / 'guides'}"])]
    require_independent(systems, [judge.format(folders)])
