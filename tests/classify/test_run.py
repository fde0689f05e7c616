"""What a run reads: labels of one kind, an input held out once, and nothing where there is nothing to learn."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from dual_head.classify.options import ClassifyOptions
from dual_head.classify.run import load_sets
from dual_head.errors import DualHeadError


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sets(dataset: str, **options):
    given = ClassifyOptions(model_name_or_path="none", dataset_name=dataset, **options)
    return load_sets(given, Console(quiet=True))[:2]


def test_where_a_row_has_shares_all_labels_of_both_sets_are_shares(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"input_text": f"t{i}", "label": i % 2} for i in range(4)])
    held = write(
        tmp_path / "held.jsonl", [{"input_text": "h0", "label": [0.25, 0.75]}, {"input_text": "h1", "label": 0}]
    )
    for dataset, other in ((train, held), (held, train)):
        found = sets(dataset, eval_dataset_name=other, labels="0,1")
        labels = {row.input: row.label for rows in found for row in rows}
        assert (labels["t0"], labels["t1"]) == ((1.0, 0.0), (0.0, 1.0))
        assert (labels["h0"], labels["h1"]) == ((0.25, 0.75), (1.0, 0.0))
    assert {row.label for rows in sets(train) for row in rows} == {0, 1}


def test_a_held_out_input_counts_once_however_many_rationales_it_has(tmp_path):
    rows = [{"input_text": f"t{i}", "label": i % 2, "rationale": ["one", "two", "three"]} for i in range(40)]
    file = write(tmp_path / "rows.jsonl", rows)
    train, held_out = sets(file, explanation="all", held_out=0.3)
    assert len({row.input for row in held_out}) == len(held_out) > 4
    assert len(train) == 3 * (40 - len(held_out))
    assert [row.input for row in held_out] == [row.input for row in sets(file, held_out=0.3)[1]]
    train, held_out = sets(file, explanation="all", eval_dataset_name=file)
    assert (len(train), len(held_out)) == (120, 40)


def test_rows_of_one_label_only_are_refused(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"input_text": f"t{i}", "label": "yes"} for i in range(4)])
    for labels in (None, "no,yes"):
        with pytest.raises(DualHeadError, match=r"4 training rows all have the label 'yes'.*--labels"):
            sets(file, labels=labels, held_out=0.0)
