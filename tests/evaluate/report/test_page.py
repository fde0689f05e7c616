"""The report as a page that a real browser opens, and as markdown."""

import html
import json
import re
import shutil
import subprocess

import pytest

from dual_head.evaluate.report.marks import across, forest_row, matrix, quality, scatter, ticks
from dual_head.evaluate.report.numbers import NOTHING, headlines, number, percent
from dual_head.evaluate.report.page import markdown, render

SYSTEMS = ("dpo", "base", "dual_head")
HOSTILE = "<script>document.title = 'owned'</script></script><!--<b>bold</b> & 'quoted' <img src=x onerror=owned()>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pair(a, b, rate, low, high, controlled=None):
    return {
        "a": a, "b": b, "wins": 50, "ties": 10, "losses": 40, "unparsable": 2, "inconsistent": 7,
        "rate": rate, "interval": [low, high], "length_controlled": controlled,
        "length_controlled_interval": None if controlled is None else [controlled - 0.1, controlled + 0.1],
    }  # fmt: skip


def example(i):
    replies = {name: f"{name} says {i}" for name in SYSTEMS}
    if i == 0:
        replies |= {"base": HOSTILE, "dpo": ""}
    verdict = {
        "a": "dual_head",
        "b": "base",
        "preference": [1.0, 0.5, 0.0, None][i % 4],
        "said": f"because {i}" if i else HOSTILE,
    }
    return {
        "id": f"q{i}",
        "category": ["helpful", "harmless"][i % 2],
        "prompt": f"ask {i}",
        "replies": replies,
        "verdicts": [verdict],
    }


def measured(mean, width=0.1, n=100):
    return {"mean": mean, "interval": [mean - width, mean + width], "n": n}


def full_report():
    metrics = [
        {"name": "length", "unit": "tokens", "better": "", "about": "of a reply"},
        {"name": "reward", "unit": "", "better": "higher", "about": "by another model"},
    ]
    rows = [
        {"system": name, "values": {"length": measured(10.0 * i), "reward": measured(float(i))}}
        for i, name in enumerate(SYSTEMS)
    ]
    speed = {"parameters": 1000, "forwards": 1, "prefill_ms": 2.5, "decode_ms": 1.25, "tokens_per_s": 800.0}
    return {
        "title": "A <b>title</b>",
        "command": "dual-head eval hh --models base=B",
        "date": "2026-11-21",
        "machine": "two cores",
        "versions": {"torch": "2.13"},
        "benchmark": {"name": "hh", "questions": 25, "source": "test.jsonl", "dropped": {"duplicate": 3}},
        "decoding": {"max_new_tokens": 128, "temperature": 0.0},
        "judge": {"name": "rule", "used": {"requests": 50}, "note": "counts words"},
        "systems": [{"name": name, "path": f"runs/{name}", "alpha": 1.0, "identity": "abc"} for name in SYSTEMS],
        "pairs": [
            pair("dual_head", "base", 0.7, 0.6, 0.8, controlled=0.55),
            pair("dual_head", "dpo", 0.5, 0.4, 0.6, controlled=0.5),
            pair("dpo", "base", 0.3, 0.2, 0.4, controlled=0.3),
        ],
        "quality": {"metrics": metrics, "rows": rows},
        "efficiency": [{"system": "base", **speed, "ratio": {"median": 1.5, "low": 1.25, "high": 1.75}}],
        "tables": [
            {"title": "By category", "about": "Grades.", "columns": ["system", "math"], "rows": [["base", 7.5]]}
        ],
        "examples": [example(i) for i in range(25)],
        "warnings": ["The judge is <i>weak</i>."],
    }


# ---- what is written ----------------------------------------------------------------------------------------------


def test_every_section_of_a_report_may_be_missing():
    whole = full_report()
    assert "<h1>Evaluation</h1>" in render({})
    assert markdown({}).startswith("# Evaluation\n")
    for name in whole:
        without = {key: value for key, value in whole.items() if key != name}
        assert render(without) != render(whole)
        assert render({name: whole[name]}).endswith("</html>")
        assert markdown({name: whole[name]})


def test_a_page_needs_nothing_from_anywhere():
    page = re.sub(r'<script type="application/json".*?</script>', "", render(full_report()), flags=re.DOTALL)
    for fetched in ("http:", "https:", "src=", "url(", "<link", "@import", "import(", "fetch(", "XMLHttpRequest"):
        assert fetched not in page
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", page)  # its own policy would forbid them


def test_text_of_a_report_is_shown_and_never_markup():
    page = render(full_report())
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "&lt;i&gt;weak&lt;/i&gt;" in page
    data = re.search(r'id="examples-data">(.*?)</script>', page, re.DOTALL).group(1)
    assert "<" not in data
    assert json.loads(data)[0]["replies"]["base"] == HOSTILE
    assert list(json.loads(data)[0]["replies"]) == list(SYSTEMS)
    assert "A &lt;b>title&lt;/b>" in markdown(full_report())


def test_the_numbers_are_in_page_and_markdown():
    page, text = render(full_report()), markdown(full_report())
    for shown in ("70.0", "800", "1.25", "7.50", "dual-head eval hh --models base=B", "duplicate 3", "temperature 0"):
        assert shown in html.unescape(page)
        assert shown in text
    assert "| dual_head against base | 70.0 | 60.0 to 80.0 | 50 | 10 | 40 | 2 | 7 | 55.0 | 45.0 to 65.0 |" in text
    assert "| dual_head | 20.0 (19.9 to 20.1) | 2.00 (1.90 to 2.10) |" in text
    assert "| base | 1,000 | 1 | 2.50 | 1.25 | 800 | 1.50 | 1.25 to 1.75 |" in text


def test_a_bar_in_a_name_does_not_end_a_markdown_cell():
    table = {"title": "t", "columns": ["a|b"], "rows": [["c|d\ne"]]}
    assert "| a\\|b |\n| :--- |\n| c\\|d e |" in markdown({"tables": [table]})


# ---- where marks stand --------------------------------------------------------------------------------------------


def test_half_is_in_the_middle_of_a_line_and_a_share_never_leaves_it():
    assert (across(0), across(0.5), across(1), across(1.2)) == (6, 125, 244, 244)


def test_a_pair_that_length_explains_is_marked():
    assert forest_row(pair("a", "b", 0.7, 0.6, 0.8, controlled=0.55))["by_length"]
    assert not forest_row(pair("a", "b", 0.9, 0.8, 1.0, controlled=0.8))["by_length"]
    assert not forest_row(pair("a", "b", 0.5, 0.4, 0.6, controlled=0.5))["by_length"]
    assert [forest_row(pair("a", "b", 0.5, *ends))["side"] for ends in ((0.51, 0.6), (0.4, 0.6), (0.1, 0.4))] == [
        1, 0, -1,
    ]  # fmt: skip


def test_a_matrix_turns_a_rate_round_and_says_which_are_clear():
    found = matrix([pair("a", "b", 0.7, 0.6, 0.8), pair("a", "c", 0.5, 0.4, 0.6)])
    (_, first), (_, second), (_, third) = found["rows"]
    assert first == [None, {"rate": 0.7, "step": 2, "clear": True}, {"rate": 0.5, "step": 0, "clear": False}]
    assert (second[0]["rate"], second[0]["step"], second[2]) == (pytest.approx(0.3), -2, None)
    assert third[1] is None
    assert matrix([pair("a", "b", 0.7, 0.6, 0.8)]) is None
    page = render(full_report())
    assert '<td class="p2 clear">70.0</td>' in page
    assert '<td class="p0">50.0</td>' in page


def test_metrics_share_a_scale_by_column_and_the_best_is_marked():
    found = quality(full_report())
    length, reward = found["columns"]
    assert found["n"] == 100
    assert [mark["best"] for mark in reward["marks"]] == [False, False, True]
    assert [mark["best"] for mark in length["marks"]] == [False, False, False]
    report = full_report()
    report["quality"]["metrics"][0]["better"] = "lower"
    assert [mark["best"] for mark in quality(report)["columns"][0]["marks"]] == [True, False, False]
    assert [mark["shown"] for mark in reward["marks"]] == ["0.00", "1.00", "2.00"]
    # The scale reaches from -0.1 to 2.1 over 96 units with a margin of 5.
    assert reward["marks"][1]["at"] == pytest.approx(48)
    assert reward["marks"][0]["from_to"][0] == 5
    assert reward["marks"][2]["from_to"][1] == 91


def test_a_figure_that_a_system_lacks_leaves_its_cell_empty():
    report = full_report()
    report["quality"]["rows"][0]["values"] = {
        "reward": {"mean": None, "interval": None, "n": 0},
        "length": measured(1, n=7),
    }
    assert quality(report)["columns"][1]["marks"][0] is None
    assert quality(report)["n"] is None
    assert "n 7" in render(report)
    assert f"| dpo | 1 (0.900 to 1.10) | {NOTHING} |" in markdown(report)


def test_the_scatter_draws_length_against_reward():
    found = scatter(full_report())
    assert (found["x"]["name"], found["y"]["name"]) == ("length", "reward")
    xs, ys = [p["x"] for p in found["points"]], [p["y"] for p in found["points"]]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    assert scatter({"quality": {"metrics": [{"name": "reward", "better": "higher"}], "rows": []}}) is None


def test_ticks_are_round_numbers():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-37, 112) == [0, 50, 100]
    assert ticks(3, 3) == [3]


def test_numbers_keep_three_digits():
    shown = [number(value) for value in (0.5, 12.345, 1234.5, 12345, 0.0, 2e-5, None, "x", float("nan"), True)]
    assert shown == ["0.500", "12.3", "1,234", "12,345", "0.00", "2.00e-05", NOTHING, "x", "nan", "True"]
    assert percent(0.12345) == "12.3"


def test_headlines_say_what_is_not_clear():
    (one,) = headlines([pair("a", "b", 0.5, 0.4, 0.6)])
    assert one == "a wins 50.0% of 100 comparisons with b (95% interval 40.0 to 60.0): no clear difference."
    many = headlines([pair("a", f"b{i}", 0.7, 0.6, 0.8) for i in range(3)] + [pair("c", "a", 0.5, 0.4, 0.6)] * 2)
    assert many == ["Of 5 pairs, 3 have an interval that leaves out 50%; a is preferred in 3 of them."]


# ---- in a real browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open a page in a headless browser and return the document after its scripts have run."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH")
    folder = tmp_path_factory.mktemp("browser")

    def dump(page: str) -> str:
        file = folder / "page.html"
        file.write_text(page, encoding="utf-8")
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={folder / 'profile'}",
        )
        ran = subprocess.run(
            [browser, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=60, check=True
        )
        return ran.stdout

    return dump


def test_a_browser_shows_ten_questions_and_runs_no_reply(opened):
    document = opened(render(full_report()))
    assert document.count('<article class="example">') == 10
    assert "1 to 10 of 25 questions" in document
    assert "page 1 of 3" in document
    assert "<title>A &lt;b&gt;title&lt;/b&gt;</title>" in document  # not "owned"
    assert "&lt;script&gt;document.title = 'owned'&lt;/script&gt;" in document
    assert "<b>bold</b>" not in document
    assert "(empty)" in document
    assert "Judge: dual_head over base" in document


def test_no_other_script_could_run_even_inside_the_page(opened):
    added = "<script>document.documentElement.dataset.ran = 'yes'</script></body>"
    document = opened(render(full_report()).replace("</body>", added))
    assert "data-ran" not in document
    assert document.count('<article class="example">') == 10


def test_filters_and_pages_show_what_they_say(opened):
    steps = """<script>
      const seen = {}, at = (id) => document.getElementById(id);
      const look = (name) => seen[name] = [...document.querySelectorAll(".example h3 > span:first-child")].map(
        (span) => span.textContent);
      const set = (control, value, event) => { control.value = value; control.dispatchEvent(new Event(event)); };
      const tick = (control) => { control.checked = !control.checked; control.dispatchEvent(new Event("change")); };
      const next = document.querySelector(".pager button:last-child");
      next.click(); look("second"); next.click(); look("third"); seen.end = next.disabled;
      set(at("search"), "SAYS 24", "input"); look("search"); seen.marked = document.querySelectorAll("mark").length;
      set(at("search"), "no such text", "input"); look("nothing"); seen.told = at("shown").textContent;
      set(at("search"), "", "input");
      set(at("category"), "harmless", "change"); tick(at("differ")); look("harmless, decided");
      set(at("category"), "", "change"); tick(at("differ"));
      set(at("verdict"), JSON.stringify(["dual_head", "base", "unparsable"]), "change"); look("no verdict");
      const systems = document.querySelectorAll("#systems input");
      seen.systems = [...systems].map((box) => box.value);
      tick(systems[0]); seen.shown = document.querySelectorAll(".example:first-child .reply").length;
      const before = document.documentElement.dataset.theme; at("theme").click();
      seen.theme = [before === undefined, ["light", "dark"].includes(document.documentElement.dataset.theme)];
      const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
      document.body.append(out);
    </script></body>"""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(full_report()))
    document = opened(page.replace("</body>", steps))
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL).group(1)))
    assert seen["second"] == [f"q{i}" for i in range(10, 20)]
    assert seen["third"] == [f"q{i}" for i in range(20, 25)]
    assert seen["end"] is True
    assert (seen["search"], seen["marked"]) == (["q24"], 3)
    assert (seen["nothing"], seen["told"]) == ([], "No question fits these filters.")
    # Odd questions are harmless: preferences 0.5 (a tie) and none. No harmless one was decided.
    assert seen["harmless, decided"] == []
    assert seen["no verdict"] == ["q3", "q7", "q11", "q15", "q19", "q23"]
    assert (seen["systems"], seen["shown"]) == (list(SYSTEMS), 2)
    assert seen["theme"] == [True, True]


def test_costs_say_what_a_guide_adds_and_what_a_token_reads():
    row = {"system": "genarm", "parameters": 26_000_000, "added": 1_000_000, "executed": 53_000_000, "forwards": 2}
    report = {"efficiency": [{**row, "ratio": {"median": 2.0, "low": 1.9, "high": 2.2}}]}
    text = markdown(report)
    assert "| parameters of its model | added to it | read per token | forwards per token |" in text
    assert "26,000,000 | 1,000,000 | 53,000,000" in text
    assert "smallest to largest" in text  # of a few rounds: no interval


def test_differences_stand_before_other_tables_in_both_forms():
    table = {"title": "Differences from base", "columns": ["system", "tokens"], "rows": [["guided", "+2 (+1 to +3)"]]}
    other = {"title": "Grades by category", "columns": ["system"], "rows": [["base"]]}
    report = {"quality": {"metrics": [], "rows": [], "differences": table}, "tables": [other]}
    for text in (markdown(report), render(report)):
        assert 0 < text.index("Differences from base") < text.index("Grades by category")
        assert "+2 (+1 to +3)" in text
