"""One file in every spelling gives the same rows, and a file that is not what its name says is refused by name."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from dual_head import load_pairs
from dual_head.classify.data.load import load_examples
from dual_head.data import RowReport
from dual_head.data.files import kind_of, rows_of_file
from dual_head.errors import DualHeadError
from dual_head.evaluate.exchange import read_answers
from dual_head.evaluate.questions import load_questions

MARK = b"\xef\xbb\xbf"
ROWS = [{"prompt": f"Q{i}:", "chosen": f" yes {i}", "rejected": f" no, {i}\nat all"} for i in range(3)]
ARRAY = json.dumps(ROWS).encode()
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = b"prompt,chosen,rejected\n" + b"".join(b'Q%d:, yes %d," no, %d\nat all"\n' % (i, i, i) for i in range(3))


def read(path, content: bytes | None = None, **options):
    """Rows of a file, which is written first, and the notes on it."""
    if content is not None:
        path.write_bytes(content)
    drops = RowReport()
    return [row for row, _ in rows_of_file(path, drops, **options)], list(drops.notes)


SPELLINGS = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "lines.NDJSON": LINES,
    "no_ending": LINES,
    "array.json": ARRAY,
    "array.jsonl": ARRAY,
    "pretty.jsonl": json.dumps(ROWS, indent=1).encode(),
    "UPPER.JSON": ARRAY,
    "mark.json": MARK + ARRAY,
    "mark.jsonl": MARK + LINES,
    "mark.json.gz": gzip.compress(MARK + ARRAY),
    "packed_without_its_name.jsonl": gzip.compress(LINES),
    "blank_first.json": b"\n \r\n" + ARRAY,
    "mark_and_blank.json": MARK + b"\r\n" + ARRAY,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "table.csv": TABLE,
    "mark.CSV": MARK + TABLE,
    "table.csv.gz": gzip.compress(TABLE),
    "table.tsv": TABLE.replace(b",", b"\t").replace(b" no\t", b" no,"),
    "spaced_header.csv": TABLE.replace(b",chosen", b" , chosen "),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_file_gives_the_same_rows(tmp_path, name):
    assert read(tmp_path / name, SPELLINGS[name]) == (ROWS, [])


def test_arrow_files_and_streams_are_read_and_what_datasets_writes_beside_them_is_not(tmp_path):
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), str(tmp_path / "indexed.arrow"))
    assert read(tmp_path / "indexed.arrow") == (ROWS, [])
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    pairs, drops = load_pairs(str(tmp_path / "saved"))
    assert (len(pairs), drops.rows, drops.notes) == (3, 3, {})


def test_kinds_are_told_by_the_name_whatever_its_case(tmp_path):
    names = {"a.JSON": "json", "a.b.csv.GZ": "csv", "a.ndjson": "jsonl", "a.txt": "txt", "a.json.bak": None, "a": None}
    assert {name: kind_of(tmp_path / name) for name in names} == names


def test_one_object_is_one_row_and_an_object_around_a_list_is_unwrapped_with_a_note(tmp_path):
    assert read(tmp_path / "one.json", json.dumps(ROWS[0], indent=1).encode()) == (ROWS[:1], [])
    rows, (note,) = read(tmp_path / "data.json", json.dumps({"version": 1, "data": ROWS}).encode())
    assert rows == ROWS
    assert "are those of its 'data'" in note
    two = {"data": ROWS, "rows": ROWS}
    assert read(tmp_path / "two.json", json.dumps(two).encode()) == ([two], [])


def test_a_single_line_of_messages_is_a_conversation_and_no_array_of_rows(tmp_path):
    turns = [{"role": "user", "content": "Hi"}]
    assert read(tmp_path / "a.jsonl", json.dumps(turns).encode()) == ([turns], [])


def test_objects_over_several_lines_are_told_how_to_be_written(tmp_path):
    content = b"".join(json.dumps(row, indent=1).encode() for row in ROWS)
    assert "jq -c" in read(tmp_path / "many.json", content)[1][0]


def test_a_key_that_is_there_twice_breaks_its_line(tmp_path):
    assert read(tmp_path / "a.jsonl", b'{"a": 1, "a": 2}\n{"a": 3}\n') == ([None, {"a": 3}], [])


# ---- tables ----------------------------------------------------------------------------------------------


def test_a_row_of_a_table_that_does_not_fit_is_broken_or_has_nothing_there(tmp_path):
    rows, _ = read(tmp_path / "a.csv", b'a,b\n1,2,3\n\n1\n"x"y,2\n3,4\n')
    assert rows == [None, {"a": "1", "b": None}, None, {"a": "3", "b": "4"}]


def test_quotation_marks_that_never_close_are_told(tmp_path):
    rows, (note,) = read(tmp_path / "a.csv", b'a,b\n1,2\n3,"4\n5,6\n')
    assert rows == [{"a": "1", "b": "2"}, None]
    assert "ends within quotation marks, which row 2 opens" in note


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_lines_that_are_not_utf_8_are_broken_and_told(tmp_path, name):
    content = {"a.csv": "a\nx\ncaf\xe9\n", "a.jsonl": '{"a": "x"}\n"caf\xe9"\n', "a.txt": "x\ncaf\xe9\n"}[name]
    rows, (note,) = read(tmp_path / name, content.encode("latin-1"))
    assert rows == [{"a": "x"} if name != "a.txt" else "x", None]
    assert "not UTF-8. Save it as UTF-8" in note


# ---- refusals --------------------------------------------------------------------------------------------

REFUSED = {
    "utf16.json": (ARRAY.decode().encode("utf-16"), "is UTF-16 text. Save it as UTF-8: iconv -f UTF-16"),
    "utf16.csv": (TABLE.decode().encode("utf-16"), "is UTF-16 text"),
    "utf32.json": (ARRAY.decode().encode("utf-32"), "is UTF-32 text"),
    "unmarked.jsonl": (LINES.decode().encode("utf-16-le"), "holds NUL bytes"),
    "packed.json.gz": (gzip.compress(ARRAY.decode().encode("utf-16")), "is UTF-16 text"),
    "book.csv": (b"PK\x03\x04...", "a zip archive or a workbook. Unpack it, or save the sheet as CSV"),
    "lines.jsonl": (b"\x28\xb5\x2f\xfd...", "compressed with zstd. Unpack it"),
    "misnamed.json": (b"PAR1...", "a parquet file. Give it a name that ends in .parquet"),
    "semicolons.csv": (b"a;b\n1;2\n", "are separated by ';'. Save it with ','"),
    "tabs.csv": (b"a\tb\n1\t2\n", "are separated by"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "the column 'a' twice. Rename"),
    "header.csv": (b"caf\xe9,b\n1,2\n", "The first line of .* is not UTF-8"),
    "empty.parquet": (b"", "not a readable parquet file"),
    "empty.arrow": (b"", "not a readable arrow file"),
    "a.parquet.gz": (b"", "Unpack it with gunzip"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_with_the_remedy(tmp_path, name):
    content, remedy = REFUSED[name]
    with pytest.raises(DualHeadError, match=remedy) as error:
        read(tmp_path / name, content)
    assert name in str(error.value)


def test_a_column_that_is_twice_in_parquet_is_refused(tmp_path):
    table = pyarrow.table([["a"], ["b"]], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DualHeadError, match="has a column twice: a, a"):
        read(tmp_path / "a.parquet")


# ---- the same for every reader -----------------------------------------------------------------------------

READERS = {
    "pairs": (ROWS, lambda file: len(load_pairs(str(file))[0])),
    "questions": (ROWS, lambda file: len(load_questions("prompts", file)[0])),
    "answers": (
        [{"instruction": f"Boil {i}?", "output": "Eight minutes.", "generator": "m"} for i in range(3)],
        lambda file: len(read_answers(file).answers),
    ),
    "classes": (
        [{"input_text": f"claim {i}", "label": ["no", "yes"][i % 2]} for i in range(3)],
        lambda file: len(load_examples(str(file)).examples),
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_pairs_questions_answers_and_classes_are_read_from_every_kind_of_file(tmp_path, reader):
    rows, count = READERS[reader]
    table = [",".join(rows[0])] + [",".join(row.values()).replace("\n", " ") for row in rows if "rejected" not in row]
    array = json.dumps(rows)
    files = {"mark.json": MARK + array.encode(), "array.jsonl": array.encode(), "UPPER.JSON": b"\n" + array.encode()}
    files |= {"table.csv": TABLE if "rejected" in rows[0] else "\n".join(table).encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert count(tmp_path / name) == 3, name
    (tmp_path / "utf16.json").write_text(array, encoding="utf-16")
    with pytest.raises(DualHeadError, match=r"utf16\.json' is UTF-16 text"):
        count(tmp_path / "utf16.json")


def test_hidden_files_are_no_data(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(LINES)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train.jsonl").write_text("{")
    (tmp_path / "._train.jsonl").write_bytes(b"\0\5")
    assert load_pairs(str(tmp_path))[1].rows == 3


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dual_head.data.streams.ROOM", 10_000)
    with pytest.raises(DualHeadError, match=r"more than 200 times its size\..* unpack it with gunzip"):
        read(tmp_path / "bomb.jsonl.gz", gzip.compress(b'{"a": "' + b"a" * 10_000_000 + b'"}\n'))
    repeated = LINES * 20  # what is packed well, as rows like one another are
    assert len(read(tmp_path / "rows.jsonl.gz", gzip.compress(repeated))[0]) == 60


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_a_line_without_end_is_refused_before_all_of_it_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr("dual_head.data.streams.LONGEST_LINE", 1000)
    content = b"x" * 5000
    with pytest.raises(DualHeadError, match="a line of 1,000 bytes or more"):
        read(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
