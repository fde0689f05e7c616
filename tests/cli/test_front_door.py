"""What a person sees first: clean output, tables without NaN, and a next command with the strengths just given."""

import math
import subprocess
import sys

import pytest
from files import write_guides

from dual_head import HiddenConfig, RewardHeadConfig
from dual_head.cli import main, sweep


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    write_guides(folder / "one", backbone_folder, {"one": RewardHeadConfig(num_heads=2, head_dim=4)})
    write_guides(folder / "two", backbone_folder, {"two": HiddenConfig()})
    return folder


def test_where_there_is_no_terminal_generate_writes_the_reply_and_nothing_else(guides):
    given = ["generate", guides / "one", "--prompt", "ask0", "--max_new_tokens", "3"]
    shown = subprocess.run([sys.executable, "-m", "dual_head", *map(str, given)], capture_output=True, text=True)
    assert shown.returncode == 0
    assert shown.stdout.strip()
    assert "it/s" not in shown.stdout + shown.stderr
    assert "Loading" not in shown.stdout + shown.stderr


@pytest.mark.parametrize(("given", "tried"), [([], "one=1,two=1"), (["--alpha", "one=0.5,two=2"], "one=0.5,two=2")])
def test_compose_offers_the_strengths_that_were_just_given(given, tried, guides, tmp_path, capsys):
    sources = [f"{name}={guides / name}" for name in ("one", "two")]
    assert main(["compose", *sources, *given, "--output_dir", str(tmp_path / "both")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--alpha {tried}")


def test_a_mean_that_is_no_number_is_a_dash_with_its_reason(tmp_path, capsys):
    figure = {"mean": 0.5, "interval": [0.4, 0.6]}
    lost = {"mean": math.nan, "interval": [math.nan, math.nan]}
    point = {"alpha": 1.0, "alphas": {"g": 1.0}, "prompts": 3, "replies": 3, "empty": 0}
    point |= {"metrics": {**dict.fromkeys(sweep.LABELS, figure), "kl": lost}, "rewards": {"rule": figure}}
    sweep._print([point], tmp_path)
    shown = capsys.readouterr().out
    assert "nan" not in shown.lower().replace("nan or infinity", "")
    assert "- stands where a reply has NaN or infinity: KL, nats." in shown
