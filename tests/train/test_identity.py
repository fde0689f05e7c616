"""What a run agrees on with the one it goes on with, and how a difference is told."""

import pytest

from dual_head import DualHeadError
from dual_head.train.identity import check_same_run, differences, source_of
from dual_head.train.options import CacheOptions


def test_a_difference_names_both_values_in_the_order_that_is_asked_for():
    before, now = {"rank": 4, "seed": 0, "beta": 0.1}, {"rank": 8, "seed": 0, "gate": "none"}
    assert differences(before, now, ("gate", "seed", "rank")) == [
        "gate: None there, 'none' now",
        "rank: 4 there, 8 now",
    ]
    assert differences(before, now, ()) == []


def test_four_differences_at_most_are_told():
    before, now = dict.fromkeys("abcdef", 0), dict.fromkeys("abcdef", 1)
    with pytest.raises(DualHeadError, match=r"with other options \(a: 0 there, 1 now; .*d: 0 there, 1 now\)\. Put "):
        check_same_run(before, now, "out")


def test_a_source_is_recorded_by_its_full_path_where_it_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").touch()
    source = source_of(CacheOptions("owner/backbone", "pairs.jsonl", output_dir="out", device_map="auto"))
    assert source["dataset_name"] == str(tmp_path / "pairs.jsonl")
    assert source["model_name_or_path"] == "owner/backbone"
    assert "device_map" not in source  # where it computes, not what
    assert "trust_remote_code" not in source
