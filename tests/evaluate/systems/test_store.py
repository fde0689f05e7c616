"""Answers that are kept: by what they depend on, through kills and torn lines, and compared like with like."""

import json

import pytest
from files import write_backbone, write_guides

from dual_head import DualHeadError
from dual_head.evaluate import Answer, Decoding, Question
from dual_head.evaluate.systems import LoadOptions, System, SystemSpec, guided, open_system
from dual_head.evaluate.systems.store import answer_all, answers_file, require_comparable, require_same_decoding
from dual_head.guides.linear import LinearConfig

GREEDY = Decoding(max_new_tokens=4)
QUESTIONS = [Question(f"q{i}", "ask0 " * (1 + i % 3) + f"ask{i}") for i in range(7)]


class Echo(System):
    """Replies with how often it was asked, and remembers in which batches."""

    identity = ""

    def __init__(self, name="echo", identity="one"):
        super().__init__(SystemSpec(name, "nowhere"), LoadOptions())
        self.identity, self.batches = identity, []

    @classmethod
    def reads(cls, path):
        return False

    def answer(self, questions, decoding):
        self.batches.append([question.id for question in questions])
        said = f"answer {len(self.batches)}"
        return [Answer(question=q.id, replies=(said,), tokens=(2,), finished=(True,)) for q in questions]


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    return write_guides(folder / "guides", write_backbone(folder / "backbone", spread=0.3), {"plain": LinearConfig()})


# ---- kept ------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches(tmp_path):
    echo = Echo()
    progress = []
    answers = answer_all(
        echo, QUESTIONS, GREEDY, tmp_path, batch_size=3, on_progress=lambda *counts: progress.append(counts)
    )
    assert list(answers) == [f"q{i}" for i in range(7)]
    # Three, two, or one "ask0" before the last word: the longest first.
    assert echo.batches == [["q2", "q5", "q1"], ["q4", "q0", "q3"], ["q6"]]
    assert progress == [(3, 7), (6, 7), (7, 7)]


def test_a_second_run_asks_nobody_and_loads_no_model(guides, tmp_path, monkeypatch):
    system = open_system(SystemSpec("it", str(guides)))
    first = answer_all(system, QUESTIONS, GREEDY, tmp_path)
    monkeypatch.setattr(guided, "AlignedModel", None)
    again = open_system(SystemSpec("it", str(guides)))
    assert answer_all(again, QUESTIONS, GREEDY, tmp_path) == first
    assert answer_all(again, [QUESTIONS[3]], GREEDY, tmp_path) == {"q3": first["q3"]}
    renamed = Question("other", QUESTIONS[3].prompt)
    (kept,) = answer_all(again, [renamed], GREEDY, tmp_path).values()
    assert (kept.question, kept.replies, kept.tokens) == ("other", first["q3"].replies, first["q3"].tokens)


@pytest.mark.parametrize(
    ("change", "asked_again"),
    [
        ({}, False),
        ({"decoding": Decoding(max_new_tokens=4, top_p=0.5, seed=9)}, False),  # greedy decoding reads neither
        ({"decoding": Decoding(max_new_tokens=5)}, True),
        ({"decoding": Decoding(max_new_tokens=4, temperature=1.0)}, True),
        ({"identity": "two"}, True),
        ({"questions": [Question("q0", "another")]}, True),
        ({"questions": [Question("q0", ({"role": "user", "content": "ask0 ask0"},))]}, True),
        ({"questions": [Question("q0", "ask0 ask0", ("and then",))]}, True),
        ({"questions": [Question("q0", "ask0 ask0", category="x", references=("y",))]}, False),
    ],
)
def test_an_answer_is_kept_under_all_it_depends_on_and_nothing_else(tmp_path, change, asked_again):
    answer_all(Echo(), [Question("q0", "ask0 ask0")], GREEDY, tmp_path)
    echo = Echo(identity=change.get("identity", "one"))
    questions = change.get("questions", [Question("q0", "ask0 ask0")])
    answer_all(echo, questions, change.get("decoding", GREEDY), tmp_path)
    assert bool(echo.batches) == asked_again


def test_a_killed_run_goes_on_with_the_batch_it_was_writing(tmp_path):
    whole = answer_all(Echo(), QUESTIONS, GREEDY, tmp_path / "whole", batch_size=3)
    echo = Echo()
    file = answers_file(tmp_path / "killed", echo)
    file.parent.mkdir()
    lines = answers_file(tmp_path / "whole", echo).read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][:25])
    resumed = answer_all(echo, QUESTIONS, GREEDY, tmp_path / "killed", batch_size=3)
    assert echo.batches == [["q4", "q0", "q3"], ["q6"]]
    assert {name: answer.question for name, answer in resumed.items()} == {name: name for name in whole}
    again = Echo()
    assert answer_all(again, QUESTIONS, GREEDY, tmp_path / "killed", batch_size=3) == resumed
    assert again.batches == []


def test_what_is_drawn_does_not_depend_on_what_was_kept_before(guides, tmp_path):
    drawn = Decoding(max_new_tokens=4, temperature=1.0)
    system = open_system(SystemSpec("it", str(guides)))
    straight = answer_all(system, QUESTIONS, drawn, tmp_path / "straight", batch_size=4)
    answer_all(system, QUESTIONS[:2], drawn, tmp_path / "detour", batch_size=4)
    answer_all(system, QUESTIONS, drawn, tmp_path / "detour", batch_size=7)
    assert answer_all(system, QUESTIONS, drawn, tmp_path / "detour", batch_size=4) == straight
    lines = answers_file(tmp_path / "straight", system).read_text().splitlines(keepends=True)
    answers_file(tmp_path / "straight", system).write_text("".join(lines[:2]))
    assert answer_all(system, QUESTIONS, drawn, tmp_path / "straight", batch_size=4) == straight


def test_greedy_answers_are_the_same_in_batches_of_any_size(guides, tmp_path):
    system = open_system(SystemSpec("it", str(guides)))
    one, many = (answer_all(system, QUESTIONS, GREEDY, tmp_path / str(n), batch_size=n) for n in (1, 7))
    assert one == many
    assert len({answer.replies for answer in one.values()}) > 1


def test_a_model_that_says_nothing_has_answered(tmp_path):
    class Silent(Echo):
        def answer(self, questions, decoding):
            super().answer(questions, decoding)
            return [Answer(question=q.id, replies=("",), tokens=(1,), finished=(True,)) for q in questions]

    silent = Silent()
    answers = answer_all(silent, QUESTIONS, GREEDY, tmp_path)
    assert {answer.replies for answer in answers.values()} == {("",)}
    assert answer_all(silent, QUESTIONS, GREEDY, tmp_path) == answers
    assert len(silent.batches) == 1
    assert require_comparable(QUESTIONS, {"silent": answers})[0] == QUESTIONS


def test_a_line_tells_what_was_asked_said_and_how(tmp_path):
    conversation = Question("q", ({"role": "user", "content": "grüß"},), ("und?",))
    answer_all(Echo(), [conversation], GREEDY, tmp_path)
    (row,) = map(json.loads, (tmp_path / "echo.jsonl").read_text(encoding="utf-8").splitlines())
    assert len(row.pop("key")) == 64
    assert row == {
        "identity": "one",
        "decoding": {"max_new_tokens": 4, "temperature": 0.0},
        "question": "q",
        "prompt": [{"role": "user", "content": "grüß"}],
        "follow_ups": ["und?"],
        "replies": ["answer 1"],
        "tokens": [2],
        "finished": [True],
    }


def test_kept_answers_are_a_system_of_their_own(guides, tmp_path):
    answers = answer_all(open_system(SystemSpec("it", str(guides))), QUESTIONS, GREEDY, tmp_path)
    recorded = open_system(SystemSpec("again", str(tmp_path / "it.jsonl")))
    assert answer_all(recorded, QUESTIONS, GREEDY, tmp_path / "unused") == answers
    assert not (tmp_path / "unused").exists()


def test_what_cannot_be_kept_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    cases = {
        "same id": ([QUESTIONS[0], Question("q0", "b")], tmp_path, 1),
        "batch_size must be at least 1": (QUESTIONS, tmp_path, 0),
        "Choose another output folder": (QUESTIONS, tmp_path / "file", 1),
    }
    for remedy, (questions, folder, size) in cases.items():
        with pytest.raises(DualHeadError, match=remedy):
            answer_all(Echo(), questions, GREEDY, folder, batch_size=size)


# ---- like with like --------------------------------------------------------------------------------------


def given(*names, replies=("r",)):
    return {name: Answer(question=name, replies=replies) for name in names}


def test_systems_that_answered_different_questions_are_not_compared():
    questions = [Question(name, name) for name in "abcdef"]
    answers = {"whole": given(*"abcdef"), "partial": given(*"ab")}
    with pytest.raises(DualHeadError, match=r"'partial' lacks 4 of 6 \(c, d, e, \.\.\.\)\. .*--allow_missing"):
        require_comparable(questions, answers)
    kept, both = require_comparable(questions, answers, allow_missing=True)
    assert [question.id for question in kept] == ["a", "b"]
    assert {name: list(own) for name, own in both.items()} == {"whole": ["a", "b"], "partial": ["a", "b"]}
    with pytest.raises(DualHeadError, match="No question was answered by every system"):
        require_comparable(questions, {"one": given("a"), "two": given("b")}, allow_missing=True)


def test_an_answer_to_the_first_turn_alone_is_not_whole():
    turns = [Question("a", ({"role": "user", "content": "x"},), ("y",)), Question("b", "z")]
    answers = {"full": given("a", replies=("r", "s")) | given("b"), "half": given("a", "b")}
    with pytest.raises(DualHeadError, match=r"'half' lacks 1 of 2 \(a\)"):
        require_comparable(turns, answers)


def test_answers_decoded_otherwise_are_refused_unless_forced(tmp_path):
    answer_all(Echo(), QUESTIONS, GREEDY, tmp_path)
    (tmp_path / "gpt4.json").write_text('[{"instruction": "a", "output": "b"}]')
    ours, theirs = (open_system(SystemSpec(name, str(tmp_path / name))) for name in ("echo.jsonl", "gpt4.json"))
    unknown = f"'{tmp_path / 'gpt4.json'}' does not say how its answers were decoded"
    assert require_same_decoding([Echo(), ours, theirs], Decoding(max_new_tokens=4, seed=5)) == [unknown]
    with pytest.raises(DualHeadError, match="max_new_tokens 4 there and 8 here"):
        require_same_decoding([ours], Decoding(max_new_tokens=8))
    with pytest.raises(DualHeadError, match=r"temperature 0\.0 there and 1\.0 here"):
        require_same_decoding([ours], Decoding(max_new_tokens=4, temperature=1.0))
    (note,) = require_same_decoding([ours], Decoding(max_new_tokens=8), force=True)
    assert "was decoded otherwise" in note
