"""Results are kept by name, and a page changes between its markers only."""

import json
import sys
from pathlib import Path

import pytest
import report
from report import Point, Section, cell, collect, collect_points, draw, fill, markdown, read, replaced

MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 1, "versions": {"torch": "2"}, "date": "2026-01-02", "commit": "abc"}
STEP = Section(name="step", columns=("side", "ms"), rows=(("naive", 9373.2), ("TRL", None)), note="N.", bound="B.")
PAGE = (
    "before\n<!-- bench:step -->\nold\n<!-- /bench -->\nbetween\n<!-- bench:other -->\nkept\n<!-- /bench -->\nafter\n"
)


def point(**changed):
    given = {"side": "naive", "measure": "ms", "axis": "V", "at": 8, "median": 2.0, "spread": (1.0, 3.0)}
    return Point(**{**given, **changed})


def test_a_section_is_written_between_its_markers_and_nothing_else_changes(tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "results" / "cpu.json"
    page.write_text(PAGE)
    collect(STEP, MACHINE, file)
    fill(page, file)
    table = "N.\n\n| side | ms |\n| --- | --- |\n| naive | 9,373 |\n| TRL |  |\n\nBound: B.\n\n"
    machine = "*a CPU, 2 cores, 1 threads; torch 2; 2026-01-02, commit abc.*"
    assert page.read_text() == PAGE.replace("old\n", f"\n{table}{machine}\n\n")
    written = page.read_text()
    fill(page, file)
    assert page.read_text() == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no markers", "no place for step"),
        ("<!-- bench:step -->\n", "not closed"),
        ("<!-- bench:a -->\n<!-- bench:step -->\n<!-- /bench -->\n", "not closed"),
        ("<!-- bench:step -->\n<!-- /bench -->\n" * 2, "twice"),
    ],
)
def test_a_page_whose_markers_are_wrong_is_left_alone(text, said):
    with pytest.raises(ValueError, match=said):
        replaced(text, {"step": "table"})


def test_a_section_measured_again_takes_the_place_of_the_old_one(tmp_path):
    file = tmp_path / "cpu.json"
    collect(STEP, MACHINE, file)
    collect(Section(name="decode", columns=("x",), rows=()), MACHINE, file)
    collect(Section(name="step", columns=("x",), rows=((1,),)), MACHINE, file)
    assert {name: kept["rows"] for name, kept in read(file)["sections"].items()} == {"decode": [], "step": [[1]]}


def test_a_point_measured_again_takes_the_place_of_the_old_one(tmp_path):
    file = tmp_path / "cpu.json"
    collect_points([point(at=16), point()], MACHINE, file)
    collect_points([point(median=5.0), point(side="TRL")], MACHINE, file)
    kept = [(row["side"], row["at"], row["median"]) for row in read(file)["points"]]
    assert kept == [("TRL", 8, 2.0), ("naive", 8, 5.0), ("naive", 16, 2.0)]
    assert all(row["machine"] == MACHINE for row in json.loads(file.read_text())["points"])


def test_the_picture_is_of_the_processor_that_was_measured_last_and_points_of_others_are_kept(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    file, drawn = tmp_path / "cpu.json", []
    collect_points([point(), point(at=16)], {**MACHINE, "cpu": "another", "date": "2026-01-03"}, file)
    collect_points([point(side="TRL")], MACHINE, file)
    collect_points([point()], MACHINE, file)
    assert len(read(file)["points"]) == 4
    monkeypatch.setattr(report, "_panel", lambda _panel, here, *_: drawn.extend(here))
    draw(read(file)["points"], tmp_path / "picture.png")
    assert [(row["machine"]["cpu"], row["at"]) for row in drawn] == [("another", 8), ("another", 16)]


def test_what_does_not_fit_a_table_or_a_picture_is_refused():
    with pytest.raises(ValueError, match="does not have 2 cells"):
        Section(name="step", columns=("side", "ms"), rows=(("naive",),))
    with pytest.raises(ValueError, match="A point is of ms, mb over V, T, rank, guides"):
        point(axis="width")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), ("1.0x", "1.0x"), (16384, "16,384"), (9373.4, "9,373"), (1.0, "1.00"), (0.01234, "0.0123")],
)
def test_cells_are_short(value, text):
    assert cell(value) == text


def test_a_section_without_note_and_bound_is_table_and_machine():
    section = {"columns": ["a"], "rows": [[1]], "machine": MACHINE}
    assert markdown(section).startswith("| a |\n| --- |\n| 1 |\n\n*a CPU")


def test_the_command_writes_page_and_picture_again(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page, file, picture = tmp_path / "page.md", tmp_path / "cpu.json", tmp_path / "picture.png"
    page.write_text(PAGE)
    collect(STEP, MACHINE, file)
    collect_points([point(at=at, side=side) for at in (8, 16) for side in ("naive", "TRL")], MACHINE, file)
    collect_points([point(measure="mb", axis="rank", at=4)], MACHINE, file)
    options = ["--results", str(file), "--page", str(page), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["report.py", *options])
    report.main()
    assert "9,373" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_script_says_how_to_run_it():
    scripts = [file for file in Path(report.__file__).parent.glob("*.py") if "__main__" in file.read_text()]
    assert len(scripts) >= 2
    for script in scripts:
        assert f"python benchmarks/{script.name}" in script.read_text().split('"""')[1]
