"""`dual-head classify lint` prints and writes what the linter finds."""

import json

import pytest
from transformers import AutoTokenizer

from dual_head.cli import main
from dual_head.errors import DualHeadError


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "train.jsonl"
    said = [
        {"input_text": "Ice is cold.", "label": "yes", "rationale": "The answer is yes indeed."},
        {"input_text": "Fire is wet.", "label": "no", "rationale": "Fire burns and dries things."},
        {"input_text": "Sand is dry.", "label": "yes"},
        {"input_text": "Lost.", "label": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    return file


def lint(*arguments):
    return main(["classify", "lint", *map(str, arguments)])


def test_it_prints_the_account_of_the_rows_and_each_flaw(rows, capsys):
    assert lint("--dataset", rows, "--no_probe") == 0
    said = capsys.readouterr().out
    assert "1 dropped: no label (first: " in said
    assert "rows of each label: no 1, yes 2" in said
    assert "2 rationales in 3 rows" in said
    [line] = [line for line in said.splitlines() if line.strip().startswith("word of its own label")]
    assert line.split()[5:7] == ["1", "50.0%"]
    assert "row 1: The answer is yes indeed." in line
    assert "leak probe: none, switched off" in said


def test_the_special_tokens_of_a_tokenizer_are_looked_for_too(backbone_folder, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[why]"]})
    tokenizer.save_pretrained(tmp_path / "own")
    said = [{"input_text": f"Ice {i}", "label": "yn"[i % 2], "rationale": f"so [why] it {i}"} for i in range(4)]
    (tmp_path / "train.json").write_text(json.dumps(said))
    for more, found in (([], "0"), (["--tokenizer", tmp_path / "own"], "4")):
        assert lint("--dataset", tmp_path / "train.json", "--no_probe", *more) == 0
        [line] = [line for line in capsys.readouterr().out.splitlines() if "special token or mark" in line]
        assert line.split()[7] == found


def test_it_writes_all_figures_as_json(rows, tmp_path):
    file = tmp_path / "lint" / "found.json"
    assert lint("--dataset", rows, "--no_probe", "--output", file, "--held_out", rows) == 0
    found = json.loads(file.read_text())
    assert found["checks"]["no rationale"] == {
        "rows": 3,
        "count": 1,
        "share": pytest.approx(1 / 3),
        "examples": [["row 3", "Sand is dry."]],
    }
    assert found["read"]["dropped"] == {"no label": 1}
    assert found["held_out_inputs_seen"] == 3


def test_the_probe_is_measured_on_held_out_rows(tmp_path, capsys):
    pytest.importorskip("sklearn")
    told = [(f"n{i} x", "yes" if i % 2 else "no", "aye aye" if i % 2 else "nay nay") for i in range(50)]
    for name, part in (("train.jsonl", told[:30]), ("test.jsonl", told[30:])):
        said = (json.dumps({"q": q, "y": y, "why": why}) + "\n" for q, y, why in part)
        (tmp_path / name).write_text("".join(said))
    columns = json.dumps({"input": "q", "label": "y", "rationale": "why"})
    assert lint("--dataset", tmp_path, "--held_out_split", "test", "--columns", columns) == 0
    said = capsys.readouterr().out
    assert "20 rows, held out, fitted on 30" in said
    assert "rationale alone     100.0%" in said
    assert "The rationales tell the label" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--explanation", "one"], "--explanation is a number"),
        (["--columns", "q"], "input=text,label=class"),
        (["--format", "tripel"], "Did you mean 'triplets'"),
        (["--no_probe", "--output", "."], "--output is a file"),
    ],
)
def test_a_wrong_option_is_told_with_its_remedy(rows, capsys, more, said):
    assert lint("--dataset", rows, *more) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--dataset", "--held_out"])
def test_what_it_reads_is_not_its_output(rows, tmp_path, capsys, option):
    (tmp_path / "other.jsonl").write_text(rows.read_text())
    before = (tmp_path / "other.jsonl").read_bytes()
    files = {"--dataset": rows, "--held_out": rows, option: tmp_path / "other.jsonl"}
    flags = [part for flag in files.items() for part in flag]
    assert lint(*flags, "--no_probe", "--output", tmp_path / "other.jsonl") == 2
    assert "is an input of this command and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "other.jsonl").read_bytes() == before


def test_a_folder_as_output_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "broken.jsonl").write_text("{")
    assert lint("--dataset", tmp_path / "broken.jsonl", "--output", tmp_path) == 2
    assert "--output is a file" in capsys.readouterr().err


def test_without_scikit_learn_it_says_how_to_get_it(rows, capsys, monkeypatch):
    def absent(package, extra):
        raise DualHeadError(f"'{package}' is not installed: dual-head[{extra}]")

    monkeypatch.setattr("dual_head.classify.rationales.probe.require", absent)
    many = "".join(
        json.dumps({"input_text": f"n{i}", "label": i % 2, "rationale": "so it is"}) + "\n" for i in range(20)
    )
    rows.write_text(many)
    assert lint("--dataset", rows) == 2
    assert "dual-head[eval]" in capsys.readouterr().err
