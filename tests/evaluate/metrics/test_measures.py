"""What measures depend on: whatever was changed is measured anew."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest

from dual_head.evaluate import Answer, Question
from dual_head.evaluate.metrics import Metric, measures
from dual_head.evaluate.metrics.measures import Measures
from dual_head.evaluate.rewards import reward_identity
from dual_head.evaluate.systems.identity import files_digest


def test_a_reward_function_that_was_edited_is_another_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "points_of_a_test.py"
    module.write_text("def points(prompt, reply):\n    return 1.0\n")
    before = reward_identity("points_of_a_test:points")
    assert reward_identity("points_of_a_test:points") == before
    module.write_text("def points(prompt, reply):\n    return float(len(reply))\n")
    assert reward_identity("points_of_a_test:points") != before


def test_a_metric_of_another_package_that_was_edited_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "metric_of_a_test.py"
    system, questions = SimpleNamespace(name="it", identity="i"), [Question("q", "a")]
    answers = {"q": Answer(question="q", replies=("b",))}

    def measured(value):
        source.write_text(f"def compute(questions, answers, tools):\n    return [{value}]\n")
        monkeypatch.delitem(sys.modules, "metric_of_a_test", raising=False)
        importlib.invalidate_caches()
        metric = Metric("mine", "a test's", importlib.import_module("metric_of_a_test").compute)
        monkeypatch.setattr(measures, "load_metrics", lambda: {"mine": metric})
        return Measures(tmp_path / "measures").of(system, questions, answers).values["mine"]

    assert (measured("1.0"), measured("1.0"), measured("2.0 + 1")) == ({"q": 1.0}, {"q": 1.0}, {"q": 3.0})


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "pytorch_model.bin", "config.json", "1_Pooling/config.json"),
        *("chat_template.jinja", "tokenizer.model", "vocab.txt"),
    ],
)
def test_a_model_is_all_of_its_files_wherever_it_is(tmp_path, name):
    for folder in ("a", "b"):
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"0")
    assert files_digest(str(tmp_path / "a")) == files_digest(str(tmp_path / "b"))
    (tmp_path / "b" / name).write_bytes(b"11")
    assert files_digest(str(tmp_path / "a")) != files_digest(str(tmp_path / "b"))


def test_a_name_on_the_hub_is_no_folder():
    assert files_digest("sentence-transformers/all-MiniLM-L6-v2") == ""


def test_what_a_killed_run_left_is_removed_where_all_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(Measures, "_key", lambda self, *_: "k")
    (tmp_path / "guided.json").write_text(json.dumps({"key": "k", "values": {"reward": 1.0}, "notes": []}))
    (tmp_path / ".writing-3f9a.lock").touch()
    measured = Measures(folder=tmp_path).of(SimpleNamespace(name="guided"), [], {})
    assert measured.values == {"reward": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["guided.json"]
