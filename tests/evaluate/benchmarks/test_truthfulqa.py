"""TruthfulQA: MC1 and MC2 computed by hand, and the published files read as they are."""

import json
import math
from dataclasses import replace

import pytest
from files import word_tokenizer
from models import tiny_lm

from dual_head import DualHeadError
from dual_head.evaluate.benchmarks import load_benchmark
from dual_head.evaluate.benchmarks.choices import ChoiceQuestion
from dual_head.evaluate.metrics.likelihood import continuation_logps
from dual_head.evaluate.questions import load_questions

TRUTHFULQA = load_benchmark("truthfulqa")


def choice(question: str, true: tuple[str, ...], false: tuple[str, ...], category: str = "") -> ChoiceQuestion:
    """A question whose best answer is the first of the true ones."""
    return ChoiceQuestion("", question, category=category, best=true[0], true=true, false=false, single=false)


SKY = choice("What colour is the sky?", ("Blue", "It is blue"), ("Green", "Red"), "Sky")
CAT = choice("How many lives has a cat?", ("One",), ("Nine", "Seven"), "Animals")


def loaded(source) -> list[ChoiceQuestion]:
    """Its questions, without the ids that they are given."""
    return [replace(question, id="") for question in load_questions("truthfulqa", source)[0]]


def told(probabilities: dict[str, float]):
    """Log-probabilities of answers, whatever was asked."""
    return lambda pairs: [math.log(probabilities[answer.strip()]) for _, answer in pairs]


def test_mc1_and_mc2_are_those_computed_by_hand():
    chances = {"Blue": 0.1, "It is blue": 0.5, "Green": 0.2, "Red": 0.2, "One": 0.3, "Nine": 0.1, "Seven": 0.2}
    result = TRUTHFULQA.score(told(chances), [SKY, CAT])
    # Blue, the best answer, is less likely than green; both true answers together have 0.6 of 1.0.
    assert result.questions == [(0.0, pytest.approx(0.6)), (1.0, pytest.approx(0.3 / 0.6))]
    assert result.mc1["mean"] == 0.5
    assert result.mc2["mean"] == pytest.approx(0.55)
    assert result.mc2["interval"] == pytest.approx([0.5, 0.6])
    assert (result.mc2["n"], result.mc2["missing"]) == (2, 0)
    assert result.categories == {
        "Animals": {"mc1": 1.0, "mc2": pytest.approx(0.5), "n": 1},
        "Sky": {"mc1": 0.0, "mc2": pytest.approx(0.6), "n": 1},
    }


def test_the_best_answer_need_not_be_likelier_than_other_true_ones():
    result = TRUTHFULQA.score(told({"Blue": 0.3, "It is blue": 0.5, "Green": 0.1, "Red": 0.1}), [SKY])
    assert result.questions == [(1.0, pytest.approx(0.8))]


def test_a_model_that_finds_all_answers_alike_is_not_truthful():
    result = TRUTHFULQA.score(lambda pairs: [-3.0] * len(pairs), [SKY, CAT])
    assert result.questions == [(0.0, pytest.approx(2 / 4)), (0.0, pytest.approx(1 / 3))]


def test_very_unlikely_answers_still_have_shares():
    result = TRUTHFULQA.score(lambda pairs: [-5000.0 - i for i in range(len(pairs))], [CAT])
    by_hand = 1 / (1 + math.exp(-1) + math.exp(-2))
    assert result.questions == [(1.0, pytest.approx(by_hand))]


def test_a_log_probability_that_is_no_number_is_counted_and_not_averaged():
    def broken(pairs):
        return [math.nan if "cat" in prompt else -1.0 - len(answer) for prompt, answer in pairs]

    result = TRUTHFULQA.score(broken, [SKY, CAT])
    assert result.questions[1] == (None, None)
    assert (result.mc1["n"], result.mc1["missing"], result.mc1["mean"]) == (1, 1, result.questions[0][0])
    nothing = TRUTHFULQA.score(broken, [CAT])
    assert (nothing.mc1["mean"], nothing.mc1["n"], nothing.categories["Animals"]["mc2"]) == (None, 0, None)
    impossible = TRUTHFULQA.score(lambda pairs: [-math.inf] * len(pairs), [CAT])
    assert impossible.questions == [(0.0, None)]


def test_questions_are_asked_after_the_published_examples_and_each_answer_once():
    requests = []

    def watched(pairs):
        requests.extend(pairs)
        return [-1.0] * len(pairs)

    TRUTHFULQA.score(watched, [SKY])
    assert [answer for _, answer in requests] == [" Blue", " Green", " Red", " It is blue"]
    prompt = requests[0][0]
    assert prompt.endswith("Q: What colour is the sky?\nA:")
    assert prompt.count("Q: ") == 7
    assert prompt.startswith("Q: What is human life expectancy in the United States?\nA: Human life")
    assert "Barcelona, Spain.\n\nQ: What colour" in prompt


def test_a_tiny_model_is_asked_through_its_likelihoods(monkeypatch):
    monkeypatch.setattr(TRUTHFULQA, "primer", "")
    lm, tokenizer = tiny_lm("llama").eval(), word_tokenizer()
    question = choice("can i ask0 ?", ("good1", "good2 good3"), ("bad1",))
    result = TRUTHFULQA.score(
        lambda pairs: [score.logp for score in continuation_logps(lm, tokenizer, pairs)], [question]
    )
    answers = ("good1", "good2 good3", "bad1")
    scores = continuation_logps(lm, tokenizer, [("Q: can i ask0 ?\nA:", f" {answer}") for answer in answers])
    one, two, wrong = (math.exp(score.logp) for score in scores)
    assert result.mc2["mean"] == pytest.approx((one + two) / (one + two + wrong))
    assert result.mc1["mean"] == float(one > wrong)


# ---- files -----------------------------------------------------------------------------------------------


def test_a_table_and_a_list_of_choices_are_read(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text(
        "\ufeffQuestion,Category,Best Answer,Correct Answers,Incorrect Answers\n"
        'What colour is the sky?,Sky,Blue,"Blue; It is blue;","Green; Red ;Green"\n',
        encoding="utf-8",
    )
    assert loaded(tmp_path / "TruthfulQA.csv") == [SKY]
    assert loaded(tmp_path) == [SKY]
    row = {"question": SKY.prompt, "mc1_targets": {"Blue": 1, "Red": 0}}
    row["mc2_targets"] = {"Blue": 1, "It is blue": 1, "Green": 0, "Red": 0}
    (tmp_path / "mc_task.json").write_text(json.dumps([row]))
    (question,) = loaded(tmp_path)
    assert (question.single, question.false, question.category) == (("Red",), ("Green", "Red"), "Sky")


def test_other_files_are_refused_with_what_is_expected(tmp_path):
    with pytest.raises(DualHeadError, match="There is no file or folder"):
        loaded(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "other.json").write_text('[{"question": "q"}]')
    (tmp_path / "torn.json").write_text('[{"question"')
    for name, reason in (
        ("other.csv", "laid out neither"),
        ("other.json", "laid out neither"),
        ("torn.json", "malformed"),
    ):
        with pytest.raises(DualHeadError, match=reason):
            loaded(tmp_path / name)
    row = {"question": "q", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1}}
    (tmp_path / "one_sided.json").write_text(json.dumps([row]))
    with pytest.raises(DualHeadError, match="no true and false answers"):
        loaded(tmp_path / "one_sided.json")
    with pytest.raises(DualHeadError, match="no questions"):
        TRUTHFULQA.score(told({}), [])


def test_the_published_files_agree_with_each_other(shared_data):
    folder = shared_data / "eval" / "truthfulqa"
    choices, table = loaded(folder), loaded(folder / "TruthfulQA.csv")
    assert (len(choices), len(table), len(loaded(folder / "TruthfulQA_v1_817.csv"))) == (790, 790, 817)
    by_question = {row.prompt: row for row in table}
    same = [row for row in choices if set(row.true) == set(by_question[row.prompt].true)]
    assert len(same) > 780
    assert len({row.category for row in choices}) == 37
    assert all(row.category for row in choices)
    guessing = TRUTHFULQA.score(lambda pairs: [0.0] * len(pairs), choices)
    assert guessing.mc1["mean"] == 0.0
    assert 0.3 < guessing.mc2["mean"] < 0.6
