"""Rows of files and of the hub: by their kind, a broken one in its place, a configuration by its name."""

import json

import datasets
import pytest

from dual_head.data import RowReport
from dual_head.data.sources import rows_of, rows_of_file
from dual_head.errors import DualHeadError

ROWS = [{"a": 1}, {"a": 2}]


def rows(name, **given) -> list:
    return [row for row, _ in rows_of(str(name), "train", given.get("data_dir"), RowReport())]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_line_of_nothing_but_brackets_is_one_broken_row(tmp_path, ending):
    file = tmp_path / f"rows.{ending}"
    file.write_text('{"a": 1}\n' + "[" * 200_000 + '\n{"a": 2}\n')
    assert rows(file) == [{"a": 1}, None, {"a": 2}]
    file.write_text("[" * 200_000)
    assert rows(file) == [None]


def test_a_kind_is_stronger_than_a_name(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.bin")
    (tmp_path / "rows.txt").write_text(json.dumps(ROWS, indent=1))
    for name, kind in (("rows.bin", "parquet"), ("rows.txt", "json")):
        assert [row for row, _ in rows_of_file(tmp_path / name, RowReport(), kind=kind)] == ROWS


@pytest.fixture
def hub(monkeypatch):
    """A hub of one data set with the configurations default and hard; what it is asked for."""
    asked = []

    def load_dataset(*named, data_dir, split):
        asked.append((*named, data_dir, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda _: ["default", "hard"])
    return asked


def test_data_dir_is_a_configuration_on_the_hub_or_else_a_folder(hub):
    assert rows("owner/name", data_dir="hard") == rows("owner/name", data_dir="some/folder") == rows("owner/name")
    assert hub == [
        ("owner/name", "hard", None, "train"),
        ("owner/name", "some/folder", "train"),
        ("owner/name", None, "train"),
    ]


@pytest.mark.parametrize("data_dir", [None, "hard"])
def test_a_data_set_of_a_script_is_refused_with_the_remedy(monkeypatch, data_dir):
    def refused(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    monkeypatch.setattr(datasets, "get_dataset_config_names", refused)
    with pytest.raises(DualHeadError, match=r"found name\.py\. Name a copy of it without a script"):
        rows("owner/name", data_dir=data_dir)


def test_a_folder_that_is_named_as_a_file_holds_the_parts_of_its_split(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for split, row in zip(("train", "test"), ROWS, strict=True):
        (tmp_path / f"{split}.parquet").mkdir()
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"{split}.parquet" / "part-0.parquet")
    assert rows(tmp_path) == ROWS[:1]
    assert rows(tmp_path / "test.parquet") == ROWS[1:]
