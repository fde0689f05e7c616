"""The throughput of classifiers: every side says the same, ratios are of one round, and a page keeps what it holds."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import classify
import pytest
import report
from classify import COT, DHRD, HALF, NAME, PIPELINE, PLAIN, SMALL, VERBALISER
from measure import Timing


def test_the_small_job_measures_every_side_and_writes_json_and_page(tmp_path, monkeypatch, capsys):
    output, page = tmp_path / "results" / "classify.json", tmp_path / "classify.md"
    options = ["--small", "--output", str(output), "--page", str(page), "--texts", "9"]
    monkeypatch.setattr(sys, "argv", ["classify.py", *options])
    classify.main()
    section = json.loads(output.read_text())["sections"][NAME]
    assert [row[0] for row in section["rows"]] == [DHRD, HALF, PLAIN, VERBALISER, PIPELINE, COT]
    figures = {row[0]: row[1:] for row in section["rows"]}
    assert all(row[0] > 0 and row[4] > 0 for row in figures.values())
    assert figures[PLAIN][1] == figures[PIPELINE][2] == figures[COT][3] == "1 (1 to 1)"
    assert figures[COT][5] is None  # of one request there is no p99
    assert "9 texts of" in section["note"]
    assert "of the texts float32's label" in section["note"]
    assert report.markdown(section) in page.read_text()
    assert DHRD in capsys.readouterr().out


def test_a_page_is_changed_between_the_markers_only_and_gets_them_once(tmp_path):
    page = tmp_path / "docs" / "results" / "classification.md"
    classify.write("one", page)
    assert page.read_text().startswith("# Classifiers\n")
    around = page.read_text().replace("one", "two")
    classify.write("two", page)
    assert page.read_text() == around
    page.write_text(f"before\n{report.OPENING}{NAME} -->\nold\n<!-- /bench -->\nafter\n")
    classify.write("new", page)
    said = page.read_text()
    assert said.startswith("before\n")
    assert said.endswith("after\n")
    assert "old" not in said
    assert "new" in said


def test_texts_are_as_long_as_asked_for_and_always_the_same():
    work = classify.Job(texts=2000)
    texts = classify.texts_of(work)
    assert texts == classify.texts_of(work)
    tokens = sorted(len(text.split()) + 1 for text in texts)
    assert 20 <= tokens[1000] <= 22
    assert 30 <= tokens[1680] <= 34  # 84% are below 21 e^0.42 = 32
    few = [len(text.split()) + 1 for text in classify.evenly(texts, 50)]
    assert sum(few) / 50 == pytest.approx(sum(tokens) / 2000, rel=0.03)


def test_models_that_say_different_things_are_not_timed():
    says = {name: (lambda texts, name=name: [name] * len(texts)) for name in (DHRD, PLAIN, PIPELINE)}
    with pytest.raises(RuntimeError, match=r"plain pooled.* on 0.0% of the texts"):
        classify.require_agreement(says, ["w1"])
    alike = dict.fromkeys(says, says[DHRD])
    classify.require_agreement(alike, ["w1"])


def test_half_precision_is_measured_beside_full_precision_only(tmp_path):
    assert HALF in classify.sides_of(SMALL, tmp_path / "full")
    assert HALF not in classify.sides_of(replace(SMALL, dtype="bfloat16"), tmp_path / "half")


def test_ratios_are_of_the_same_round_and_a_text():
    each = {DHRD: [1.0, 2.0, 4.0], PLAIN: [2.0, 2.0, 6.0], PIPELINE: [4.0, 8.0, 8.0], COT: [100.0, 300.0, 400.0]}
    waits = {name: [0.001 * i for i in range(1, 101)] for name in each}
    made = classify.section(SMALL, each, waits, ["w1", "w1 w2"])
    assert made.rows[0] == (DHRD, 0.5, "1.5 (1 to 2)", "4 (2 to 4)", "100 (100 to 150)", 50.0, 99.0)


def test_chains_of_thought_count_their_own_texts(monkeypatch):
    """Twelve texts in 12 seconds, and four chains in 40: one text is 1 second, one chain 10."""

    def compared(sides, **_):
        return {name: Timing(seconds=(40.0,) if name == COT else (12.0,), ratios=(1.0,)) for name in sides}

    monkeypatch.setattr(classify, "compare", compared)
    rows = {row[0]: row[1:] for row in classify.measured(SMALL).rows}
    assert rows[DHRD][0] == pytest.approx(1.0)
    assert rows[COT][0] == pytest.approx(0.1)
    assert rows[DHRD][3] == "10 (10 to 10)"


def test_a_request_is_one_text_and_the_first_of_each_side_is_not_counted():
    now, asked = [0.0], []
    costs = {"slow": iter([9.0, 2.0, 4.0]), "fast": iter([7.0, 1.0, 1.0])}

    def side(name):
        def run(texts):
            asked.append((name, *texts))
            now[0] += next(costs[name])

        return run

    found = classify.latencies({name: side(name) for name in costs}, ["w1", "w2"], lambda: now[0])
    assert found == {"slow": [2.0, 4.0], "fast": [1.0, 1.0]}
    order = ["slow", "fast", "fast", "slow", "slow", "fast"]  # each round begins with another side
    assert asked == list(zip(order, ["w1", "w1", "w1", "w1", "w2", "w2"], strict=True))


def test_the_script_says_how_to_run_it():
    assert "python benchmarks/classify.py" in Path(classify.__file__).read_text().split('"""')[1]
