"""What a judge is told and how its words are read."""

import json

import pytest

from dual_head import DualHeadError
from dual_head.evaluate import Question
from dual_head.evaluate.judges.prompts import Unreadable, load_family
from dual_head.evaluate.judges.prompts.reading import PATTERNS

ONE = Question("one", "What is 2 + 2?")
MATH = Question("math", "What is 2 + 2?", category="math", references=("4",))
TWO = Question("two", "Name a colour.", follow_ups=("Another?",), category="writing")
TWO_MATH = Question("both", "2 + 2?", follow_ups=("3 + 3?",), category="math", references=("four", "six"))


# ---- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "said", "value"),
    [
        ("[[A]]", "A is better. [[A]]", 1),
        ("[[A]]", "**[[B]]**", 0),
        ("[[A]]", "[[C]]", 0.5),
        ("[[A]]", 'I say "[[A]]" if A is better, "[[B]]" if B is.\nMy verdict:\n[[B]]\n', 0),  # it quotes, then decides
        ("[[A]]", "[[A]] and again [[A]]", 1),
        ("[[rating]]", "Rating: [[5]]", 5),
        ("[[rating]]", "Not [[3]].\nRating: [[7.5]].", 7.5),
        ("[[rating]]", "As [1] says.\n**Rating:** [6]", 6),
        ("[[rating]]", "Rating: [[4]], or rating: [5]", 4),
        ("scores", "8 7\nThe first is better.", 1),
        ("scores", "\n 6.5, 9 \nWell, 10 of them", 0),
        ("scores", "8/10 8/10", 0.5),
        ("m/M", "m", 1),
        ("m/M", ' "M".\n', 0),
    ],
)
def test_a_verdict_is_found_in_words(verdict, said, value):
    assert PATTERNS[verdict].read(said) == value


@pytest.mark.parametrize(
    ("verdict", "said", "why"),
    [
        ("[[A]]", "", "no verdict"),
        ("[[A]]", "[[D]] [A] A", "no verdict"),
        ("[[A]]", "[[C]]\nIt is [[A]] or [[B]]", "contradicting verdicts [[A]], [[B]]"),
        ("[[rating]]", "Rating: 5", "no verdict"),
        ("[[rating]]", "As [5] says.", "no verdict"),
        ("[[rating]]", "[[100]]", "100 is not on the scale"),
        ("[[rating]]", "[[0]]", "0 is not on the scale"),
        ("[[rating]]", "[[3]] no, [[4]]", "contradicting"),
        ("scores", "I think 8 and 7 are fair: 8 7", "4 scores on its first line"),
        ("scores", "Both are good.\n8 7", "0 scores on its first line"),
        ("scores", "11 7", "11 is not on the scale"),
        ("m/M", "m or M", "neither m nor M"),
        ("m/M", "", "neither m nor M"),
    ],
)
def test_what_is_no_verdict_is_unreadable_and_says_why(verdict, said, why):
    with pytest.raises(Unreadable) as unread:
        PATTERNS[verdict].read(said)
    assert why in str(unread.value)


# ---- templates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "pairwise", "single"),
    [
        (ONE, "pair-v2", "single-v1"),
        (MATH, "pair-math-v1", "single-math-v1"),
        (TWO, "pair-v2-multi-turn", "single-v1-multi-turn"),
        (TWO_MATH, "pair-math-v1-multi-turn", "single-math-v1-multi-turn"),
        (Question("writing", "Write.", category="writing", references=("Well.",)), "pair-v2", "single-v1"),
        (Question("math", "2 + 2?", category="math"), "pair-v2", "single-v1"),
        (Question("half", "a", follow_ups=("b",), category="math", references=("c",)), "pair-v2-multi-turn", None),
    ],
)
def test_a_question_gets_the_prompt_for_its_turns_and_its_references(question, pairwise, single):
    family = load_family("mt-bench")
    assert family.choose(question, "pairwise").name == pairwise
    if single:
        assert family.choose(question, "single").name == single


def test_every_place_of_a_template_is_filled_and_braces_in_answers_stay():
    shown = ("{answer_b}", "{x} } {")
    for question in (ONE, MATH, TWO, TWO_MATH):
        turns = len(question.asked)
        a, b = (tuple(f"{text}{turn}" for turn in range(turns)) for text in shown)
        template = load_family("mt-bench").choose(question, "pairwise")
        text = template.messages(question, a, b)[-1]["content"]
        for part in (*question.asked, *a, *b, *(question.references if template.references else ())):
            assert part in text
        assert text.count("{answer_b}") == turns  # the first answer's own words
        assert text.index(a[0]) < text.index(b[0])


def test_a_conversation_is_shown_with_its_speakers_and_a_single_request_without():
    talk = (
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Help me."},
    )
    family = load_family("scores-v1")
    for prompt, shown in (
        (talk, "[Conversation]\nUser: Hello.\n\nAssistant: Hi.\n\nUser: Help me.\n\n[Reply of"),
        (talk[:1], "[Conversation]\nHello.\n\n[Reply of"),
        ("\n\nHuman: Hello.\n\nAssistant:", "[Conversation]\nHuman: Hello.\n\nAssistant:\n\n[Reply of"),
    ):
        question = Question("q", prompt)
        text = family.choose(question, "pairwise").messages(question, ("yes",), ("no",))[-1]["content"]
        assert text.startswith(shown)


def test_the_packaged_texts_are_mt_benchs_own(shared_data):
    file = shared_data / "eval" / "mt_bench" / "judge_prompts.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file}")
    published = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}
    ours = {template.name: template for template in load_family("mt-bench").templates}
    assert ours.keys() == published.keys()
    for name, row in published.items():
        theirs = (row["type"], row["system_prompt"], row["prompt_template"], row["output_format"])
        assert (ours[name].kind, ours[name].system, ours[name].template, ours[name].verdict) == theirs
        assert "Apache-2.0" in ours[name].source


def test_a_template_of_ones_own_is_a_file_or_a_folder(tmp_path):
    own = {"name": "mine", "kind": "pairwise", "verdict": "[[A]]", "template": "{question}: {answer_a} or {answer_b}?"}
    (tmp_path / "mine.json").write_text(json.dumps(own))
    (tmp_path / "two.json").write_text(
        json.dumps({**own, "name": "two", "turns": 2, "template": "{question_2}? {answer_a_2} or {answer_b_2}"})
    )
    family = load_family(str(tmp_path / "mine.json"))
    assert family.choose(ONE, "pairwise").messages(ONE, ("4",), ("5",)) == [
        {"role": "user", "content": "What is 2 + 2?: 4 or 5?"}
    ]
    with pytest.raises(DualHeadError, match="none of kind pairwise for question 'two', which has 2 turns"):
        family.choose(TWO, "pairwise")
    both = load_family(str(tmp_path))
    assert both.choose(TWO, "pairwise").messages(TWO, ("a", "b"), ("c", "d"))[0]["content"] == "Another?? b or d"
    assert family.identity != both.identity
    with pytest.raises(DualHeadError, match="2 turns and an answer to it 1 replies"):
        both.choose(TWO, "pairwise").messages(TWO, ("a",), ("b",))


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"template": "{question} {answer_a} {answer_bb}"}, "Did you mean 'answer_b'?"),
        ({"template": "{question} {answer_a}"}, "does not show {answer_b}"),
        ({"template": "{question} {answer_a} {answer_b}", "references": True}, "does not show {ref_answer}"),
        ({"verdict": "[[rating]]"}, "One of kind pairwise asks for [[A]] or scores or m/M"),
        ({"kind": "pair"}, "It is pairwise or single"),
        ({"turns": 0}, "Give at least 1"),
        ({"turn": 2}, "Did you mean 'turns'?"),
        ({"template": 3}, "must be str"),
    ],
)
def test_a_template_that_cannot_work_is_refused(change, remedy, tmp_path):
    own = {"name": "mine", "kind": "pairwise", "verdict": "[[A]]", "template": "{question} {answer_a} {answer_b}"}
    (tmp_path / "mine.json").write_text(json.dumps({**own, **change}))
    with pytest.raises(DualHeadError) as refused:
        load_family(str(tmp_path / "mine.json"))
    assert remedy in str(refused.value)
    assert "mine" in str(refused.value)


@pytest.mark.parametrize("content", ["", "[]", '{"name": "x"}', "\x00"])
def test_a_file_that_is_no_template_is_refused(content, tmp_path):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(DualHeadError, match="is not a judge's template"):
        load_family(str(tmp_path / "mine.json"))
    with pytest.raises(DualHeadError, match="is not a judge's template"):
        load_family(str(tmp_path / "absent.json"))


def test_a_reference_that_a_template_needs_and_a_question_lacks_is_said():
    with pytest.raises(DualHeadError, match="It needs a reference for each turn"):
        load_family("pair-math-v1").choose(ONE, "pairwise")
    assert load_family("pair-math-v1").choose(MATH, "pairwise").references
