"""A file of lines goes on after a kill: a cut line is ended, and left out when rows are read."""

import pytest

from dual_head.errors import DualHeadError
from dual_head.files.lines import add_lines, rows_by_key


def test_lines_go_behind_a_line_that_a_killed_run_cut(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    add_lines(file, ['{"key": "a", "value": 1}'])
    file.write_bytes(file.read_bytes() + b'{"key": "b", "va')
    add_lines(file, ['{"key": "c", "value": 3}', '{"key": "a", "value": 4}'])
    assert file.read_text().splitlines()[1:3] == ['{"key": "b", "va', '{"key": "c", "value": 3}']
    assert rows_by_key(file, lambda row: row["value"]) == {"a": 4, "c": 3}


def test_rows_without_a_key_or_that_cannot_be_read_are_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"value": 1}\n[2]\n{"key": "a"}\n{"key": "b", "value": 2}\n')
    assert rows_by_key(tmp_path / "rows.jsonl", lambda row: row["value"]) == {"b": 2}
    assert rows_by_key(tmp_path / "none.jsonl", dict) == {}


def test_a_file_that_cannot_be_written_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DualHeadError, match=r"Cannot write to .*: Is a directory\. Choose another --output\."):
        add_lines(tmp_path, ["row"], remedy="Choose another --output.")
