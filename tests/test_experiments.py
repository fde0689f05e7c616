"""The experiments still run, at a size that shows nothing but that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def test_every_experiment_says_how_to_run_it():
    scripts = [file for file in EXPERIMENTS.glob("*.py") if "__main__" in file.read_text()]
    assert len(scripts) >= 4
    for script in scripts:
        assert f"python experiments/{script.name}" in script.read_text().split('"""')[1]


@pytest.mark.slow
def test_methods_are_compared_by_exact_reward(tmp_path):
    small = ["--methods", "hidden", "--pairs", "64", "--steps", "2", "--prompts", "4"]
    script = str(EXPERIMENTS / "demo_methods.py")
    done = subprocess.run(
        [sys.executable, script, "--output_dir", str(tmp_path), *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "methods.json").read_text())
    assert written["methods"]["hidden"]["parameters"] == 2 * 128 * 64
    assert set(written["methods"]["hidden"]["gain"]) == {"0.5", "1.0", "1.5", "2.0"}
    assert "| hidden | 16,384 | 1 |" in done.stdout


@pytest.mark.slow
def test_single_replies_are_compared_with_pairs_of_them(tmp_path):
    script = str(EXPERIMENTS / "feedback.py")
    done = subprocess.run(
        [sys.executable, script, "--output_dir", str(tmp_path), "--small"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert set(figures["at"]) == {"hidden, pairs", "kto, scores", "kto, sides of pairs"}
    replies = [json.loads(line) for line in (tmp_path / "data" / "replies-s0.jsonl").read_text().splitlines()]
    assert len(replies) == 2 * figures["about"]["pairs"]
    assert "<!-- evidence:feedback -->" in done.stdout
