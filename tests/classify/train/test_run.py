"""What a run reads: labels of one kind, an input held out once, and nothing where there is nothing to learn."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from dual_head.classify.train.inputs import load_sets
from dual_head.classify.train.options import ClassifyOptions
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


def esnli(i: int, j: int) -> dict:
    said = {"premise": f"A dog runs {i}.", "hypothesis": f"It moves {j}.", "explanation_1": "so"}
    return said | {"label": ("entailment", "neutral", "contradiction")[j % 3]}


def multirc(i: int, j: int) -> dict:
    said = {"paragraph": f"Text {i}.", "question": f"Why {j // 2}?", "answer": f"So {j}.", "label": j % 2}
    return said | {"idx": {"paragraph": i, "question": i * 10 + j // 2, "answer": j}}


def own(i: int, j: int) -> dict:
    return {"input_text": f"Page {i}: line {j}", "label": j % 2, "together": f"page {i}"}


@pytest.mark.parametrize("row", [esnli, multirc, own])
def test_no_premise_passage_or_what_else_rows_share_is_on_both_sides(tmp_path, row):
    file = write(tmp_path / "rows.jsonl", [row(i, j) for i in range(60) for j in range(4)])
    found = sets(file, held_out=0.3)
    shared = [{one.input.splitlines()[0].split(":")[int(row is not own)] for one in side} for side in found]
    assert not shared[0] & shared[1]
    assert all(len(side) == 4 * len(kinds) > 20 for side, kinds in zip(found, shared, strict=True))
    # Questions of a passage are still counted as they were.
    assert {one.group for one in found[1]} == ({""} if row is not multirc else {one.group for one in found[1]} - {""})


def test_a_column_may_say_what_is_held_out_together(tmp_path):
    rows = [{"text": f"{i} {j}", "label": j % 2, "author": f"author {i}"} for i in range(40) for j in range(3)]
    file = write(tmp_path / "rows.jsonl", rows)
    columns = {"input": "text", "label": "label", "together": "author"}
    train, held_out = ({one.input.split()[0] for one in side} for side in sets(file, columns=columns, held_out=0.3))
    assert not train & held_out
    assert len(held_out) > 5


def test_rows_of_one_label_only_are_refused(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"input_text": f"t{i}", "label": "yes"} for i in range(4)])
    for labels in (None, "no,yes"):
        with pytest.raises(DualHeadError, match=r"4 training rows all have the label 'yes'.*--labels"):
            sets(file, labels=labels, held_out=0.0)
