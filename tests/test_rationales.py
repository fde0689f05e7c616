"""The rationale experiment: rows whose answer follows, figures by hand, and all of it, small."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PAGE = EXPERIMENTS.parent / "docs" / "results" / "classification.md"
if str(EXPERIMENTS) not in sys.path:  # scripts that import each other by name
    sys.path.append(str(EXPERIMENTS))

import rationales_data  # noqa: E402
import rationales_tables  # noqa: E402
from evidence_tables import BLOCK  # noqa: E402


def test_people_are_happy_where_most_like_what_they_got_and_the_rationale_says_who_does():
    row = rationales_data.taste_row([("Ann", "cake"), ("Bob", "cake"), ("Carl", "rice")])
    assert row == {
        "input_text": "Ann got cake. Bob got cake. Carl got rice.",
        "label": "sad",
        "rationale": "Ann likes cake. Bob hates cake. Carl hates rice.",
    }
    for row in rationales_data.taste_rows()[:500]:
        assert row["label"] == ("happy" if row["rationale"].count("likes") > 1 else "sad")


def test_both_labels_are_as_frequent_and_no_name_or_food_tells_the_label():
    rows = rationales_data.taste_rows()
    assert Counter(row["label"] for row in rows) == {"happy": 12960, "sad": 12960}
    for word in (*rationales_data.PEOPLE, *rationales_data.FOODS):
        found = Counter(row["label"] for row in rows if word in row["input_text"])
        assert found["happy"] == found["sad"]


def test_no_test_row_is_trained_on(shared_data, tmp_path):
    found = rationales_data.datasets(shared_data, tmp_path, rows=200, test_rows=100)[rationales_data.SYNTHETIC]
    train, test = (set((found.path / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (200, 100, 0)


def test_a_folder_without_rationales_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="--data"):
        rationales_data.datasets(tmp_path, tmp_path, rows=4, test_rows=4)


def test_seeds_are_rows_of_the_table_and_differences_are_by_row():
    class Run:
        def __init__(self, system: str, right: str):
            self.system, self.data, self.right = system, "creak", right

    class Experiment:
        @staticmethod
        def read(run: Run) -> dict:
            return {"right": run.right, "rate": 1e-3, "processor_seconds": 2.0}

    runs = [Run("pooled", "0011"), Run("pooled", "0111"), Run("none", "1011"), Run("none", "1111")]
    found = rationales_tables._systems(Experiment, runs)
    assert found["pooled"]["accuracy"] == pytest.approx(5 / 8)
    assert found["none"]["by_seed"] == [0.75, 1.0]
    assert found["none"]["over"]["pooled"]["mean"] == pytest.approx(2 / 8)  # one more right of four, in both seeds
    low, high = found["none"]["over"]["pooled"]["interval"]
    assert low == 0.0
    assert high <= 0.75  # only one row ever differs


def test_tables_say_how_far_a_system_is_from_both_others():
    over = {"pooled": {"mean": 0.1, "interval": (0.05, 0.15)}, "none": {"mean": 0.0, "interval": (0, 0)}}
    own = {"accuracy": 0.5, "interval": (0.4, 0.6), "by_seed": [0.5], "processor_seconds": 9.0, "over": over}
    table = rationales_tables._accuracies({"pooled": own, "none": own})
    assert "| DHRD | 50.0 (40.0 to 60.0) | 50.0 | +10.0 (+5.0 to +15.0) |  | 9 |" in table
    assert "| pooled only, no reasoning loss | 50.0 (40.0 to 60.0) | 50.0 |  | +0.0 (+0.0 to +0.0) | 9 |" in table


def test_the_curve_is_the_mean_over_seeds():
    curve = {"none": {"steps": [10, 20], "by_seed": np.array([[0.2, 0.4], [0.4, 0.8]]).tolist()}}
    assert "| DHRD | 30.0 | 60.0 |" in rationales_tables._curve_table(curve)


@pytest.mark.slow
def test_the_experiment_is_made_once_and_written_into_a_page(shared_data, tmp_path):
    page = Path(shutil.copy(PAGE, tmp_path))
    backbone = shared_data / "lm" / "stories260k"
    command = [sys.executable, str(EXPERIMENTS / "rationales.py"), "--small", "--backbone", str(backbone)]
    command += ["--data", str(shared_data), "--output_dir", str(tmp_path / "out"), "--page", str(page)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    text = page.read_text()
    before, after = ({m["name"]: m["body"] for m in BLOCK.finditer(own)} for own in (PAGE.read_text(), text))
    changed = {name for name, body in after.items() if body != before[name]}
    assert changed == {f"rationales-{name}" for name in ("creak", rationales_data.SYNTHETIC, "curve")}
    assert "has no place for: nothing." in first.stdout
    assert list((tmp_path / "figures").iterdir()) == [tmp_path / "figures" / "rationales-creak-tastes.json"]
    assert (tmp_path / "rationales.png").stat().st_size > 1000
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "== " not in again.stdout  # nothing was done twice
    assert page.read_text() == text
