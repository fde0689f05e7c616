"""`dual-head classify predict`: a line for each row, the same bytes however often it was stopped, nothing lost."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from classifiers import LONGEST, some_texts, write_dhrd

from dual_head.classify.predict import Predictor
from dual_head.cli import main
from dual_head.cli.classify.predict import classified
from dual_head.files.places import exclusive

TEXTS = some_texts(50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dhrd(tmp_path_factory.mktemp("predict_command"))


@pytest.fixture(scope="module", autouse=True)
def loaded_once(folder):
    """The classifier is the same in all tests, and loading it is what takes time."""
    load, kept = Predictor.load.__func__, {}

    def once(cls, name, **options):
        key = (str(name), options.get("dtype"))
        if str(name) != str(folder):
            return load(cls, name, **options)
        kept.setdefault(key, load(cls, name, device="cpu", dtype=options.get("dtype", "auto")))
        own = {k: options[k] for k in ("threshold", "batch_tokens", "max_rows_per_batch", "window") if k in options}
        temperature = options.get("temperature") or 1.0
        return cls(kept[key].model, kept[key].tokenizer, temperature=temperature, **own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "load", classmethod(once))
        yield


def write(file, texts) -> str:
    file.write_text("".join(json.dumps({"id": f"r{i}", "input": text}) + "\n" for i, text in enumerate(texts)))
    return str(file)


def predict(folder, source, output, *more: str) -> list[dict]:
    given = ["classify", "predict", str(folder), "--input", str(source), "--output", str(output), "--window", "8"]
    assert main([*given, "--batch_tokens", "64", *more]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["classify", "predict", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_every_row_has_its_line_in_order(folder, tmp_path, capsys):
    lines = predict(folder, write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl")
    assert [line["index"] for line in lines] == list(range(50))
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(50)]
    wanted = list(Predictor.load(folder, window=8, batch_tokens=64).predict(TEXTS))
    assert [line["label"] for line in lines] == [one.label for one in wanted]
    assert all(
        line["probabilities"] == pytest.approx(one.probabilities, abs=1e-6)
        for line, one in zip(lines, wanted, strict=True)
    )
    assert "50 rows" in capsys.readouterr().err


def test_broken_rows_are_counted_and_in_their_place(folder, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"input": "good0", "id": 5}\n{"inp\n{"other": 1, "id": 6}\n{"input": ""}\n')
    first, second, third, fourth = predict(folder, source, tmp_path / "out.jsonl")
    assert (first["label"] in ("no", "yes"), first["id"]) == (True, 5)
    assert second == {"index": 1, "error": "malformed row"}
    assert third["id"] == 6
    assert "no column" in third["error"]
    assert fourth["label"] in ("no", "yes")
    assert "2 could not be classified" in capsys.readouterr().err


def test_logits_that_are_no_numbers_are_an_error_of_their_row(folder, tmp_path, monkeypatch):
    score = Predictor._score

    def spoilt(self, texts):
        logits, cut = score(self, texts)
        logits[0] = float("nan")
        return logits, cut

    monkeypatch.setattr(Predictor, "_score", spoilt)
    first, second = predict(folder, write(tmp_path / "in.jsonl", TEXTS[:2]), tmp_path / "out.jsonl")
    assert "float32" in first["error"]
    assert "label" in second


def test_a_text_that_was_cut_says_so(folder, tmp_path, capsys):
    long = " ".join(["good0"] * LONGEST)
    lines = predict(folder, write(tmp_path / "in.jsonl", [long, "good0"]), tmp_path / "out.jsonl")
    assert [line.get("truncated") for line in lines] == [True, None]
    assert "1 cut" in capsys.readouterr().err


@pytest.mark.parametrize("end", [0, 1, 700, 1500, -1, None])
def test_a_killed_run_goes_on_and_leaves_the_same_bytes(folder, tmp_path, end):
    source, output = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    predict(folder, source, output)
    whole = output.read_bytes()
    output.write_bytes(whole[:end])
    predict(folder, source, output)
    assert output.read_bytes() == whole


def test_a_run_goes_on_without_classifying_what_is_done(folder, tmp_path, monkeypatch):
    source, output = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    predict(folder, source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:35]))
    score, scored = Predictor._score, []
    monkeypatch.setattr(Predictor, "_score", lambda self, texts: scored.extend(texts) or score(self, texts))
    predict(folder, source, output)
    assert scored == TEXTS[32:]


def test_rows_added_to_the_input_are_classified_as_if_they_had_been_there(folder, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    predict(folder, write(source, TEXTS[:20]), output)
    predict(folder, write(source, TEXTS), output)
    predict(folder, source, tmp_path / "at_once.jsonl")
    assert output.read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()


def test_a_refused_run_leaves_room_for_the_mended_one(folder, tmp_path, capsys):
    source, output = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    given = (folder, "--input", source, "--output", output, "--batch_tokens", 64, "--window", 8)
    assert "None of the first" in refused(capsys, *given, "--column", "nowhere")
    assert not output.exists()
    predict(folder, source, output)


def test_the_input_is_never_written_over(folder, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", TEXTS)
    before = Path(source).read_bytes()
    said = refused(capsys, folder, "--input", source, "--output", source, "--restart")
    assert "is an input of this command and is not overwritten" in said
    assert Path(source).read_bytes() == before


def test_rows_that_changed_are_another_run(folder, tmp_path, capsys):
    source, output = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    predict(folder, source, output)
    write(tmp_path / "in.jsonl", [*TEXTS[1:], TEXTS[0]])
    given = (folder, "--input", source, "--output", output, "--batch_tokens", 64, "--window", 8)
    assert "of other data" in refused(capsys, *given)


def test_one_process_at_a_time_writes_an_output(folder, tmp_path, capsys):
    source, output = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    with exclusive(output):
        assert "Another process is writing to" in refused(capsys, folder, "--input", source, "--output", output)
    assert not output.exists()


def test_another_run_is_not_gone_on_with(folder, tmp_path, capsys):
    source, output = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    predict(folder, source, output)
    before = output.read_bytes()
    other = write_dhrd(tmp_path, seed=3)
    given = (folder, "--input", source, "--output", output, "--batch_tokens", 64)
    assert "of other window" in refused(capsys, *given)
    assert "of other temperature" in refused(capsys, *given, "--window", 8, "--temperature", 2)
    assert "head" in refused(capsys, other, *given[1:], "--window", 8, "--device", "cpu")
    write(tmp_path / "in.jsonl", TEXTS[:5])
    assert "of other data" in refused(capsys, *given, "--window", 8)
    assert output.read_bytes() == before
    assert len(predict(folder, source, output, "--restart")) == 5
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "nothing says what wrote it" in refused(capsys, *given, "--window", 8)


def test_standard_input_to_standard_output(folder, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"good0 bad1\nask0\n")))
    assert main(["classify", "predict", str(folder)]) == 0
    out = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [line["index"] for line in out] == [0, 1]


def test_rows_are_read_one_window_ahead_and_no_further(folder):
    predictor, given, written = Predictor.load(folder, window=8, batch_tokens=64), 0, 0

    def rows():
        nonlocal given
        for text in TEXTS:
            given += 1
            yield text

    from dual_head.classify.data.stream import reader_of

    for lines in classified(rows(), predictor, reader_of(None)):
        assert given <= written + 8
        written += lines.count(b"\n")
    assert written == given == 50


def test_what_no_row_has_is_told_before_a_million_errors(folder, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", TEXTS)
    said = refused(capsys, folder, "--input", source, "--output", tmp_path / "out.jsonl", "--column", "sentence")
    assert "None of the first 50 rows" in said
    assert "--column" in said
    assert "Did you mean '--column'" in refused(capsys, folder, "--colum", "x")
    assert "no file" in refused(capsys, folder, "--input", tmp_path / "nowhere.jsonl")
