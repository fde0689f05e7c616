"""Rows of any kind of file, broken ones kept in their place, and the text that each asks for."""

import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest

from dual_head import DualHeadError
from dual_head.classify.data.stream import Query, count_rows, read_rows, reader_of
from dual_head.data import Dropped

ROWS = [{"input": "a b"}, {"input": "ü, \n x"}, {"input": ""}]


def rows(file, **options) -> list:
    return list(read_rows(str(file), **options))


def standard_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


# ---- files -------------------------------------------------------------------------------------------------


def test_json_lines_keep_the_place_of_a_broken_one(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"input": "a"}\n\n{"input": \n"plain"\n[1]\n\xff\n')
    assert rows(file) == [{"input": "a"}, None, "plain", [1], None]
    assert count_rows(str(file)) == 6


def test_other_spellings_of_json_are_read_too(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in ROWS))
    assert rows(tmp_path / "rows.json") == rows(tmp_path / "rows.jsonl.gz") == ROWS
    assert count_rows(str(tmp_path / "rows.jsonl.gz")) is None


def test_parquet_is_read_and_counted(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    assert rows(file) == ROWS
    assert count_rows(str(file)) == 3


def test_csv_has_line_breaks_in_fields_and_rows_that_do_not_fit(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes('\ufeffinput,id\n"ü, \n x",1\nb,2,3\nc\n'.encode())
    assert rows(file) == [{"input": "ü, \n x", "id": "1"}, None, {"input": "c", "id": None}]
    (tmp_path / "rows.tsv").write_text("input\tid\na,b\t1\n")
    assert rows(tmp_path / "rows.tsv") == [{"input": "a,b", "id": "1"}]


def test_a_long_field_of_csv_is_read(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("input\n" + "x" * 200_000 + "\ny\n")
    assert [len(row["input"]) for row in rows(file)] == [200_000, 1]


def test_lines_of_plain_text_are_texts_and_blank_ones_too(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_bytes(b"a b\r\n\n\xff\nlast")
    assert rows(file) == ["a b", "", None, "last"]


def test_standard_input_tells_by_its_first_line_what_it_is(monkeypatch):
    for data, wanted in (
        (b'{"input": "a"}\n{\n', [{"input": "a"}, None]),
        (b"a b\n{\n", ["a b", "{"]),
        (b"", []),
    ):
        standard_input(monkeypatch, data)
        assert rows("-") == wanted
    standard_input(monkeypatch, b"input,id\na,1\n")
    assert rows("-", kind="csv") == [{"input": "a", "id": "1"}]


def test_an_array_on_standard_input_is_rows_and_not_lines_of_text(monkeypatch):
    for data in (json.dumps(ROWS), json.dumps(ROWS, indent=1), "\ufeff" + json.dumps(ROWS)):
        standard_input(monkeypatch, data.encode())
        assert rows("-") == ROWS
    standard_input(monkeypatch, b"[INST] a\nb\n")
    assert rows("-") == ["[INST] a", "b"]


def test_names_of_files_have_any_case_and_a_mark_is_no_text(tmp_path):
    (tmp_path / "A.TSV").write_bytes(b"\xef\xbb\xbfinput\na\n")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\nb\0\n")
    assert rows(tmp_path / "A.TSV") == [{"input": "a"}]
    with pytest.raises(DualHeadError, match="NUL bytes"):
        rows(tmp_path / "a.txt")


def test_a_stream_is_read_as_it_comes(monkeypatch):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, block):
            block[:5] = b"word\n"
            return 5

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(Endless(), 10)))
    stream = read_rows("-")
    assert [next(stream) for _ in range(3)] == ["word"] * 3


def test_a_compressed_file_is_unpacked_whatever_its_kind(tmp_path):
    for name, said, wanted in (
        ("rows.txt.gz", "a b\n\nlast", ["a b", "", "last"]),
        ("rows.csv.gz", "input,id\na,1\n", [{"input": "a", "id": "1"}]),
        ("rows.tsv.gz", "input\tid\na,b\t1\n", [{"input": "a,b", "id": "1"}]),
    ):
        (tmp_path / name).write_bytes(gzip.compress(said.encode()))
        assert rows(tmp_path / name) == wanted


def test_a_damaged_compressed_file_ends_in_a_broken_row(tmp_path):
    whole = gzip.compress("".join(f"{n * 7919 % 10007}\n" for n in range(50_000)).encode())
    for kind in ("txt", "csv", "jsonl"):
        file = tmp_path / f"rows.{kind}.gz"
        file.write_bytes(whole[: len(whole) // 2])
        found = rows(file)
        assert len(found) > 100
        assert found[-1] is None
        file.write_bytes(b"a\n")
        assert rows(file) == [None]


def test_a_kind_that_is_said_is_stronger_than_the_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    (tmp_path / "rows.txt").write_text(json.dumps(ROWS, indent=1))
    assert rows(tmp_path / "rows.txt", kind="json") == ROWS
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.bin")
    assert rows(tmp_path / "rows.bin", kind="parquet") == ROWS
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "ROWS.PARQUET")
    assert rows(tmp_path / "ROWS.PARQUET") == ROWS
    (tmp_path / "rows.json").write_text('["a"]\n"b"\n')
    assert rows(tmp_path / "rows.json", kind="jsonl") == [["a"], "b"]
    assert count_rows(str(tmp_path / "rows.txt"), kind="parquet") is None


def test_a_line_of_nothing_but_brackets_is_a_broken_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("[" * 200_000 + '\n{"input": "a"}\n')
    assert rows(file) == [None, {"input": "a"}]


def test_what_cannot_be_read_says_why(tmp_path, monkeypatch):
    for name in ("rows.xyz", "rows.parquet.gz"):
        (tmp_path / name).write_text("")
    for source, options, said in (
        ("nowhere.jsonl", {}, "no file"),
        (str(tmp_path / "rows.xyz"), {}, "--kind"),
        (str(tmp_path / "rows.parquet.gz"), {}, "gunzip"),
        ("-", {"kind": "jsn"}, "Did you mean 'json'"),
        ("-", {"kind": "parquet"}, "from a stream"),
    ):
        standard_input(monkeypatch, b"")
        with pytest.raises(DualHeadError, match=said):
            list(read_rows(source, **options))


# ---- texts -------------------------------------------------------------------------------------------------


def test_a_text_is_where_it_is_usually_and_an_id_comes_along():
    read = reader_of(None)
    assert read({"input_text": " a ", "text": "b", "id": 7}) == Query("a", 7)
    assert read({"sentence": "a"}) == Query("a")
    assert read(" as in training ") == Query("as in training")
    assert read({"text": ""}) == Query("")


def test_a_column_a_template_or_a_format_says_where_a_text_is():
    assert reader_of(None, column="claim")({"claim": "a", "input": "b"}) == Query("a")
    assert reader_of(None, template="{a} so {b}")({"a": "x", "b": "y"}) == Query("x so y")
    written = reader_of(None, format="boolq")({"passage": "p", "question": "q", "idx": 3})
    assert written.text.startswith("Passage: p\nQuestion: q?")
    assert written.id == "3"


def test_a_text_is_written_as_it_was_in_training_unless_said_otherwise():
    trained = {"template": "{a} so {b}", "format": "esnli"}
    row = {"a": "x", "b": "y", "c": "z"}
    assert reader_of(trained)(row) == Query("x so y")
    assert reader_of(trained, column="c")(row) == Query("z")
    assert reader_of({"template": None, "format": "boolq"})({"passage": "p", "question": "q"}).text.startswith("Pass")
    mapped = {"format": "columns", "columns": {"input": ["a", "b"], "id": "c"}}
    assert reader_of(mapped)(row) == Query("x\ny", "z")


def test_only_inputs_and_ids_have_to_be_there():
    columns = {"input": "text", "label": "class", "id": "key", "rationale": "why", "answer": "said", "group": "of"}
    read = reader_of({"format": "columns", "columns": columns})
    assert read({"text": "a", "key": "7"}) == Query("a", "7")
    assert read({"text": "a", "key": "7", "why": {}, "said": [], "of": {}}) == Query("a", "7")


def test_a_text_ends_where_it_ended_in_training():
    assert reader_of(None, template="{a} {b}\n")({"a": "x", "b": ""}) == Query("x")
    assert reader_of({"format": "columns", "columns": {"input": ["a", "b"]}})({"a": "x", "b": ""}) == Query("x")


@pytest.mark.parametrize("row", [None, 3, [1], {}, {"input": None}, {"input": ["a"]}, {"input": "\ud800"}])
def test_a_row_without_a_text_is_told_apart(row):
    with pytest.raises(Dropped):
        reader_of(None)(row)


def test_ways_of_writing_that_do_not_exist_are_refused():
    with pytest.raises(DualHeadError, match="one of the three"):
        reader_of(None, column="a", template="{b}")
    with pytest.raises(DualHeadError, match="Did you mean 'boolq'"):
        reader_of(None, format="boolk")
    with pytest.raises(DualHeadError, match="brace"):
        reader_of(None, template="{a")
