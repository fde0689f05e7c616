"""Verdicts over whole sets of answers: orders, ties, what cannot be read, and what is kept."""

import json

import pytest

from dual_head import DualHeadError
from dual_head.evaluate import Answer, Judge, Question, Verdict
from dual_head.evaluate.judges.verdicts import FILE, Graded, Outcome, grade_all, judge_pairs, spent

QUESTIONS = [Question(f"q{i}", f"question {i}") for i in range(4)]


class Told:
    """A judge that says what a test tells it: `say(first, second)`, or `say(reply)` for a grade."""

    name = "told"

    def __init__(self, say, *, symmetric=False, identity="told"):
        self.say, self.symmetric, self.identity, self.asked = say, symmetric, identity, []

    def require(self, questions, kinds):
        pass

    def compare(self, comparisons):
        for index in reversed(range(len(comparisons))):  # in any order
            shown = comparisons[index]
            self.asked.append((shown.question.id, shown.first[0], shown.second[0]))
            yield index, self._verdict(self.say(shown.first[0], shown.second[0]))

    def grade(self, answers):
        for index, (question, replies) in enumerate(answers):
            self.asked.append((question.id, replies[0]))
            yield index, self._verdict(self.say(replies[0]))

    def _verdict(self, value):
        return value if isinstance(value, Verdict) else Verdict(value, said=str(value), used={"requests": 1.0})


def answers(*texts):
    return {f"q{i}": Answer(question=f"q{i}", replies=(text,)) for i, text in enumerate(texts)}


A, B = answers("a0", "a1", "a2", "a3"), answers("b0", "b1", "b2", "b3")


def by_length(first, second):
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


# ---- orders ------------------------------------------------------------------------------------------------


def test_each_pair_is_judged_in_both_orders_and_seen_from_a():
    judge = Told(by_length)
    a, b = answers("long one", "x", "same"), answers("x", "long one", "size")
    outcomes = judge_pairs(judge, QUESTIONS[:3], a, b)
    assert [outcome.question for outcome in outcomes] == ["q0", "q1", "q2"]
    assert [outcome.orders for outcome in outcomes] == [(1, 1), (0, 0), (0.5, 0.5)]
    assert [outcome.result for outcome in outcomes] == ["win", "loss", "tie"]
    assert [outcome.preference for outcome in outcomes] == [1, 0, 0.5]
    assert sorted(judge.asked)[:2] == [("q0", "long one", "x"), ("q0", "x", "long one")]
    assert isinstance(judge, Judge)


def test_a_judge_that_always_prefers_the_first_answer_makes_nothing_but_ties():
    outcomes = judge_pairs(Told(lambda first, second: 1.0), QUESTIONS, A, B)
    assert [(o.orders, o.preference, o.result, o.inconsistent) for o in outcomes] == [((1, 0), 0.5, "tie", True)] * 4
    (once,) = judge_pairs(Told(lambda first, second: 1.0), QUESTIONS[:1], A, B, both_orders=False)
    assert (once.orders, once.result, once.inconsistent) == ((1,), "win", False)


def test_a_symmetric_judge_is_asked_once():
    judge = Told(by_length, symmetric=True)
    outcomes = judge_pairs(judge, QUESTIONS, answers("long", "x", "x", "x"), B)
    assert [outcome.orders for outcome in outcomes] == [(1,), (0,), (0,), (0,)]
    assert len(judge.asked) == 4


@pytest.mark.parametrize(
    ("orders", "preference", "result", "inconsistent"),
    [
        ((1.0, 1.0), 1.0, "win", False),
        ((0.0, 0.0), 0.0, "loss", False),
        ((0.5, 0.5), 0.5, "tie", False),
        ((1.0, 0.5), 0.75, "tie", False),  # one order alone makes no win
        ((0.5, 0.0), 0.25, "tie", False),
        ((1.0, 0.0), 0.5, "tie", True),
        ((0.0, 1.0), 0.5, "tie", True),
        ((0.9, 0.6), 0.75, "win", False),  # soft preferences
        ((0.9, 0.2), 0.55, "tie", True),
        ((0.7,), 0.7, "win", False),
        ((None, 1.0), None, "unparsable", False),
        ((1.0, None), None, "unparsable", False),
        ((None, None), None, "unparsable", False),
        ((None,), None, "unparsable", False),
    ],
)
def test_a_win_needs_every_order_and_what_was_not_read_is_no_tie(orders, preference, result, inconsistent):
    outcome = Outcome(question="q", orders=orders)
    assert outcome.preference == (preference if preference is None else pytest.approx(preference))
    assert (outcome.result, outcome.inconsistent) == (result, inconsistent)


def test_soft_preferences_are_turned_round_in_the_second_order():
    (outcome,) = judge_pairs(Told(lambda first, second: 0.8 if first == "a0" else 0.3), QUESTIONS[:1], A, B)
    assert outcome.orders == pytest.approx((0.8, 0.7))
    assert outcome.preference == pytest.approx(0.75)


def test_words_flaws_and_costs_are_told():
    def say(first, second):
        return Verdict(None, said="hm", flaw="unparsable: hm", used={"cost": 0.5}) if first == "b0" else 1.0

    (outcome,) = judge_pairs(Told(say), QUESTIONS[:1], A, B)
    assert (outcome.orders, outcome.result) == ((1, None), "unparsable")
    assert (outcome.said, outcome.flaws) == (("1.0", "hm"), ("unparsable: hm",))
    assert outcome.used == {"requests": 1, "cost": 0.5}


def test_equal_replies_tie_and_nobody_is_asked():
    judge = Told(lambda first, second: 1.0)
    outcomes = judge_pairs(judge, QUESTIONS[:2], answers("same", "a1"), answers("same", "b1"))
    assert (outcomes[0].result, outcomes[0].identical, outcomes[0].preference) == ("tie", True, 0.5)
    assert not outcomes[1].identical
    assert {asked[0] for asked in judge.asked} == {"q1"}


# ---- grades ------------------------------------------------------------------------------------------------


def test_answers_are_graded_in_the_questions_order():
    def say(reply):
        return Verdict(None, said="?", flaw="unparsable") if reply == "a1" else float(reply[1])

    _, unread, graded = grade_all(Told(say), QUESTIONS[:3][::-1], A)
    assert unread == Graded(question="q1", grade=None, turns=(None,), said="?", flaw="unparsable")
    assert graded == Graded(question="q0", grade=0, turns=(0,), said="0.0")
    assert (unread.used, graded.used) == ({}, {"requests": 1})


def test_grades_may_be_any_finite_number_and_preferences_may_not():
    assert [graded.grade for graded in grade_all(Told(lambda reply: -37.5), QUESTIONS, A)] == [-37.5] * 4
    with pytest.raises(DualHeadError, match="gave 2"):
        judge_pairs(Told(lambda first, second: 2.0), QUESTIONS, A, B)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_judge_that_gives_no_number_is_refused_and_nothing_of_it_is_kept(number, tmp_path):
    for run in (
        lambda: grade_all(Told(lambda reply: number), QUESTIONS, A, folder=tmp_path),
        lambda: judge_pairs(Told(lambda first, second: number), QUESTIONS, A, B, folder=tmp_path),
    ):
        with pytest.raises(DualHeadError, match=r"The judge 'told' gave (nan|-?inf)"):
            run()
    assert (tmp_path / FILE).read_text() == ""


def test_a_judge_that_leaves_something_out_is_refused():
    judge = Told(by_length)
    judge.compare = lambda comparisons: iter([(0, Verdict(1.0))])
    with pytest.raises(DualHeadError, match="gave no verdict on 7 of 8"):
        judge_pairs(judge, QUESTIONS, A, B)


# ---- what is kept ------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path):
    judge = Told(by_length)
    first = judge_pairs(judge, QUESTIONS, A, B, folder=tmp_path / "new" / "folder")
    again = Told(lambda first, second: pytest.fail("it was asked"))
    second = judge_pairs(again, QUESTIONS, A, B, folder=tmp_path / "new" / "folder")
    assert [outcome.kept for outcome in first] == [0] * 4
    assert [outcome.kept for outcome in second] == [2] * 4
    assert [(o.orders, o.said, o.used) for o in first] == [(o.orders, o.said, o.used) for o in second]
    grades = grade_all(Told(lambda reply: 3.0), QUESTIONS, A, folder=tmp_path)
    kept = grade_all(Told(lambda reply: pytest.fail("it was asked")), QUESTIONS, A, folder=tmp_path)
    assert [(graded.grade, graded.kept) for graded in kept] == [(graded.grade, 1) for graded in grades]


def test_what_systems_share_is_paid_once_and_what_had_no_answer_as_often_as_it_was_asked(tmp_path):
    failing = ["b1"]

    def say(*replies):
        failed = replies[0] in failing
        return Verdict(None, flaw="no answer: 500", used={"requests": 5.0}) if failed else 1.0

    def run(judge):
        outcomes = [judge_pairs(judge, QUESTIONS, a, B, folder=tmp_path) for a in (A, dict(A))]
        return [*outcomes[0], *outcomes[1], *grade_all(judge, QUESTIONS, B, folder=tmp_path)]

    judge = Told(say)
    found = run(judge)
    assert sum(own.used["requests"] for own in found) > 7 + 2 * 5 + 3 + 5  # system by system
    assert len(judge.asked) == 8 + 1 + 4
    assert spent(found) == {"requests": 7 + 2 * 5 + 3 + 5}
    failing.clear()
    run(Told(say))
    assert spent(run(Told(None))) == {"requests": 8 + 4}  # of what is kept, whenever it was asked for


def test_each_verdict_is_on_disk_before_the_next_one_is_asked_for(tmp_path):
    class Watching(Told):
        def compare(self, comparisons):
            for number, verdict in enumerate(super().compare(comparisons)):
                lines = (tmp_path / FILE).read_text().splitlines()
                assert [json.loads(line)["value"] for line in lines] == [1] * number
                yield verdict

    judge_pairs(Watching(lambda first, second: 1.0), QUESTIONS, A, B, folder=tmp_path)
    assert len((tmp_path / FILE).read_text().splitlines()) == 8


def test_what_no_file_takes_is_replaced_in_replies_and_in_what_a_judge_says(tmp_path):
    broken = Verdict(None, said="it is \ud800b", flaw="\udc00")
    assert (broken.said, broken.flaw) == ("it is \ufffdb", "\ufffd")
    assert Answer(question="q", replies=("a\ud800", "caf\u00e9 \U0001f600", "\ud83d\ude00")).replies == (
        "a\ufffd",
        "caf\u00e9 \U0001f600",
        "\U0001f600",
    )
    judge_pairs(Told(by_length), QUESTIONS[:1], answers("a0"), answers("b"), folder=tmp_path)
    file = tmp_path / FILE
    rows = [{**json.loads(line), "said": "\ud800"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (outcome,) = judge_pairs(Told(None), QUESTIONS[:1], answers("a0"), answers("b"), folder=tmp_path)
    assert outcome.said == ("\ufffd", "\ufffd")
    file.write_text("".join(json.dumps({**row, "said": None}) + "\n" for row in rows))
    (again,) = judge_pairs(Told(by_length), QUESTIONS[:1], answers("a0"), answers("b"), folder=tmp_path)
    assert again.kept == 0


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_killed_run_goes_on_where_it_stopped(torn, tmp_path):
    def killed(first, second):
        if len(judge.asked) == 4:
            raise KeyboardInterrupt
        return 1.0

    judge = Told(killed)
    with pytest.raises(KeyboardInterrupt):
        judge_pairs(judge, QUESTIONS, A, B, folder=tmp_path)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[: -torn or None])  # what a kill in the middle of a write leaves
    left = 3 - bool(torn > 1)  # without its end of line alone, a line is whole
    judge = Told(lambda first, second: 1.0)
    progress = []
    outcomes = judge_pairs(judge, QUESTIONS, A, B, folder=tmp_path, on_progress=lambda *counts: progress.append(counts))
    assert len(judge.asked) == 8 - left
    assert progress == [(done, 8) for done in range(left + 1, 9)]
    assert sum(outcome.kept for outcome in outcomes) == left
    judge_pairs(Told(lambda first, second: pytest.fail("it was asked")), QUESTIONS, A, B, folder=tmp_path)


def test_only_what_had_no_answer_is_asked_for_again(tmp_path):
    flaws = {"a0": "no answer: 503", "a1": "unparsable: hm", "a2": "too long: 99 tokens"}
    judge_pairs(
        Told(lambda first, second: Verdict(None, flaw=flaws[first]) if first in flaws else 1.0),
        QUESTIONS,
        A,
        B,
        folder=tmp_path,
    )
    judge = Told(lambda first, second: 0.0)
    outcomes = judge_pairs(judge, QUESTIONS, A, B, folder=tmp_path)
    assert judge.asked == [("q0", "a0", "b0")]
    assert [outcome.orders for outcome in outcomes] == [(0, 0), (None, 0), (None, 0), (1, 0)]


def test_a_verdict_is_kept_for_exactly_what_it_depends_on(tmp_path):
    question = Question("q0", "ask", follow_ups=("more",), category="math", references=("yes", "no"))

    def asked(question=question, a=("a", "b"), b=("c", "d"), identity="told"):
        judge = Told(lambda first, second: 1.0, symmetric=True, identity=identity)
        a, b = Answer(question=question.id, replies=a), Answer(question=question.id, replies=b)
        judge_pairs(judge, [question], {question.id: a}, {question.id: b}, folder=tmp_path)
        return len(judge.asked)

    fields = {"prompt": "ask", "follow_ups": ("more",), "category": "math", "references": ("yes", "no")}
    other = {"prompt": "Ask", "follow_ups": ("less",), "category": "coding", "references": ("yes", "nein")}
    assert asked() == 1
    assert asked(Question("another name", **fields)) == 0  # of the same question
    for name, value in other.items():
        assert asked(Question("q0", **{**fields, name: value})) == 1
    assert asked(a=("a", "B")) == asked(b=("c", "D")) == asked(a=("c", "d"), b=("a", "b")) == 1
    assert asked(identity="other") == 1
    assert asked() == 0


def test_the_same_question_with_the_same_answers_is_asked_once(tmp_path):
    twins = [Question("q0", "same"), Question("q1", "same")]
    judge = Told(by_length)
    outcomes = judge_pairs(judge, twins, answers("aa", "aa"), answers("b", "b"))
    assert [outcome.result for outcome in outcomes] == ["win", "win"]
    assert len(judge.asked) == 2


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DualHeadError, match="Choose another output folder"):
        judge_pairs(Told(by_length), QUESTIONS, A, B, folder=tmp_path / "file")


# ---- sets of answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("questions", "a", "b", "remedy"),
    [
        (QUESTIONS, answers("a", "a"), B, r"2 of them \(q2, q3\) have no answer by the first one"),
        (QUESTIONS, A, answers("b"), r"3 of them \(q1, q2, q3\) have no answer by the second one"),
        (QUESTIONS[:1], A, answers("b"), r"3 of them \(q1, q2, q3\)"),
        (QUESTIONS, answers("a"), answers("b"), r"3 questions have no answer \(q1, q2, q3\)"),
        ([*QUESTIONS, QUESTIONS[1]], A, B, r"1 questions are there twice \(q1\)"),
        ([], A, B, "no questions"),
        (QUESTIONS, A, {**B, "q1": Answer(question="q1", replies=("b", "b"))}, "'q1' has 1 turns .* 2 replies"),
        (QUESTIONS, {**A, "q1": Answer(question="q1", replies=())}, B, "'q1' has 1 turns .* 0 replies"),
    ],
)
def test_answers_to_different_questions_are_never_compared(questions, a, b, remedy):
    judge = Told(by_length)
    with pytest.raises(DualHeadError, match=remedy):
        judge_pairs(judge, questions, a, b)
    assert not judge.asked


def test_many_missing_answers_are_counted_and_a_few_named():
    many = answers(*["a"] * 50)
    with pytest.raises(DualHeadError, match=r"50 of them \(q0, q1, q2, \.\.\.\)"):
        judge_pairs(Told(by_length), QUESTIONS, many, {})


def test_a_system_may_have_answered_more_than_is_judged():
    assert len(judge_pairs(Told(by_length), QUESTIONS[:2], A, B)) == 2
    assert len(grade_all(Told(lambda reply: 1.0), QUESTIONS[:2], A)) == 2
    with pytest.raises(DualHeadError, match=r"2 questions have no answer \(q2, q3\)"):
        grade_all(Told(lambda reply: 1.0), QUESTIONS, answers("a", "a"))
