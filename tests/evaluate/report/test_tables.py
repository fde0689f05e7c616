"""The report as values: measures over the same questions, differences in pairs, warnings."""

from types import SimpleNamespace

from dual_head.evaluate import Answer, Question
from dual_head.evaluate.judges.verdicts import Graded, Outcome, Usage
from dual_head.evaluate.metrics import Measured
from dual_head.evaluate.report.tables import frontier, judged, quality, warnings

QUESTIONS = [Question(f"q{i}", "say something") for i in range(6)]
SYSTEMS = [SimpleNamespace(name="base"), SimpleNamespace(name="guided")]


def measured(**values: list[float | None]) -> dict[str, Measured]:
    """The metric "tokens" of each system, question by question."""
    return {name: Measured({"tokens": {f"q{i}": v for i, v in enumerate(own)}}) for name, own in values.items()}


def test_a_measure_is_over_the_questions_that_every_system_has_a_value_for():
    found = quality(SYSTEMS, QUESTIONS, measured(base=[1.0] * 5 + [-100.0], guided=[1.0] * 5 + [None]), {})
    base, guided = (row["values"]["tokens"] for row in found["rows"])
    assert (base["mean"], base["n"]) == (guided["mean"], guided["n"]) == (1.0, 5)
    assert (base["missing"], guided["missing"]) == (1, 1)  # left out of both


def test_differences_from_the_first_system_are_paired_by_question():
    found = quality(SYSTEMS, QUESTIONS, measured(base=[1.0, 20, 3, 40, 5, 60], guided=[3.0, 22, 5, 42, 7, 62]), {})
    assert found["differences"]["title"] == "Differences from base"
    assert found["differences"]["columns"] == ["system", "tokens"]
    assert found["differences"]["rows"] == [["guided", "+2 (+2 to +2)"]]  # of no width, however far questions differ


def test_a_measure_of_one_system_alone_is_shown_and_not_compared():
    found = quality(SYSTEMS, QUESTIONS, measured(guided=[2.0] * 6), {})
    assert [list(row["values"]) for row in found["rows"]] == [[], ["tokens"]]
    assert "differences" not in found


def test_measures_that_share_no_question_are_left_out():
    assert quality(SYSTEMS, QUESTIONS[:2], measured(base=[1.0, None], guided=[None, 1.0]), {}) == {}


def test_questions_that_were_left_out_count_for_nothing():
    found = quality(SYSTEMS, QUESTIONS[:2], measured(base=[1.0, 3.0, 99.0], guided=[2.0, 4.0, 99.0]), {})
    assert found["rows"][0]["values"]["tokens"]["mean"] == 2.0


def test_of_several_rewards_the_systems_that_none_beats_are_named_with_what_they_cover():
    rewards = {"helpful": [(0, 0), (2, 4), (0, 2), (0, 0)], "harmless": [(1, 3), (0, 0), (0, 0), (0, 0)]}
    found = {
        name: Measured({f"reward:{r}": {"q0": own[i][0], "q1": own[i][1], "q2": None} for r, own in rewards.items()})
        for i, name in enumerate(("harmless", "helpful", "less", "base"))
    }
    (table,) = frontier(list(found), found)
    assert table["columns"] == ["system", "helpful", "harmless", "on the frontier"]
    assert [row[1:] for row in table["rows"]] == [
        ["+0", "+2", "yes"],
        ["+3", "+0", "yes"],
        ["+1", "+0", ""],
        ["+0", "+0", ""],
    ]
    # From (0, 0), the worst of each: both lie on an axis and cover nothing.
    assert "cover 0 (0 to 0)" in table["about"]
    assert "over 2 questions" in table["about"]


def test_a_frontier_needs_two_rewards_and_two_systems():
    one = {name: Measured({"reward:helpful": {"q0": 1.0}}) for name in ("a", "b")}
    two = {"a": Measured({"reward:helpful": {"q0": 1.0}, "reward:harmless": {"q0": 1.0}})}
    assert frontier(["a", "b"], one) == frontier(["a"], two) == frontier([], {}) == []


def test_grades_of_the_judge_are_a_measure_like_others():
    grades = {
        name: [Graded(question="q0", grade=grade), Graded(question="q1", grade=None)]
        for name, grade in (("base", 4.0), ("guided", 7.0))
    }
    found = quality(SYSTEMS, QUESTIONS, {}, grades)
    assert [row["values"]["judge"]["mean"] for row in found["rows"]] == [4.0, 7.0]
    assert found["differences"]["rows"][0][1] == "+3 (+3 to +3)"


def test_what_the_judge_used_counts_grades_and_what_systems_share_once():
    first, second = Usage("ab", {"requests": 1.0, "cost": 0.5}, False), Usage("ba", {"requests": 2.0}, False)
    again = [Usage(usage.key, usage.used, True) for usage in (first, second)]
    verdicts = {
        ("x", "base"): [Outcome(question="q0", orders=(1.0, 1.0), costs=(first, second))],
        ("y", "base"): [Outcome(question="q0", orders=(1.0, 1.0), costs=tuple(again))],
    }
    grades = {"x": [Graded(question="q0", grade=7.0, costs=(Usage("a", {"requests": 1.0}, False),))]}
    answers = {name: {"q0": Answer(question="q0", replies=(name,))} for name in ("x", "y", "base")}
    found = judged(SimpleNamespace(name="told", symmetric=False), QUESTIONS[:1], answers, verdicts, grades)
    assert found["judge"]["used"] == {"requests": 4.0, "cost": 0.5}
    assert [pair["a"] for pair in found["pairs"]] == ["x", "y"]


def test_it_is_said_where_one_system_is_nearly_always_longer():
    def answers(reply: str) -> dict[str, Answer]:
        return {q.id: Answer(question=q.id, replies=(reply,), tokens=(1,), finished=(True,)) for q in QUESTIONS}

    outcomes = [SimpleNamespace(question=q.id, flaws=(), inconsistent=False) for q in QUESTIONS]
    said = warnings(None, {("a", "b"): outcomes}, {}, {"a": answers("long reply"), "b": answers("short")}, {})
    assert any("nearly all of the longer answers" in text for text in said)
    assert not warnings(None, {("a", "b"): outcomes}, {}, {"a": answers("alike"), "b": answers("other")}, {})
