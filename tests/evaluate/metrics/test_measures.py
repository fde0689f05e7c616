"""What measures depend on: whatever was changed is measured anew."""

import pytest

from dual_head.evaluate.metrics.measures import _files_of, _reward_identity


def test_a_reward_function_that_was_edited_is_another_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "points_of_a_test.py"
    module.write_text("def points(prompt, reply):\n    return 1.0\n")
    before = _reward_identity("points_of_a_test:points")
    assert _reward_identity("points_of_a_test:points") == before
    module.write_text("def points(prompt, reply):\n    return float(len(reply))\n")
    assert _reward_identity("points_of_a_test:points") != before


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "1_Pooling/config.json"])
def test_a_model_is_all_of_its_files_wherever_it_is(tmp_path, name):
    for folder in ("a", "b"):
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"0")
    assert _files_of(str(tmp_path / "a")) == _files_of(str(tmp_path / "b"))
    (tmp_path / "b" / name).write_bytes(b"11")
    assert _files_of(str(tmp_path / "a")) != _files_of(str(tmp_path / "b"))


def test_a_name_on_the_hub_is_no_folder():
    assert _files_of("sentence-transformers/all-MiniLM-L6-v2") == ""
