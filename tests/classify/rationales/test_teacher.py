"""A teacher is asked until it says what it should, and no row, label or reply is lost on the way."""

import json

import pytest

from dual_head.classify import Example
from dual_head.classify.data.load import load_examples
from dual_head.classify.rationales.teacher import TeacherOptions, write_rationales
from dual_head.errors import DualHeadError

LABELS = ("wrong", "right")
ROWS = [Example("Ice is cold.", 1, id="r0"), Example("Fire is wet.", 0, id="r1", group="g")]
GOOD = "It is frozen water. Frozen things chill.\nFinal Answer: {gold}"


class Teacher:
    """Replies by what `say` makes of (number of the request, the conversation); None is no reply."""

    def __init__(self, say):
        self.say, self.talks = say, []

    def __call__(self, talks):
        for index, talk in enumerate(talks):
            self.talks.append(talk)
            yield index, self.say(len(self.talks), talk)

    @property
    def asked(self):
        return [talk[-1]["content"] for talk in self.talks]


def gold_of(talk):
    return "right" if "correct label is: right" in talk[0]["content"] else "wrong"


def good(_number, talk):
    return GOOD.format(gold=gold_of(talk))


@pytest.fixture
def write(tmp_path):
    """Have a teacher write into a file; gives the account and the lines."""

    def write(teacher, rows=ROWS, *, name="t", labels=LABELS, multi_label=False, **options):
        file, ways = tmp_path / "out" / "rationales.jsonl", TeacherOptions(**options)
        found = write_rationales(rows, labels, teacher, file, teacher=name, options=ways, multi_label=multi_label)
        return found, [json.loads(line) for line in file.read_text().splitlines()]

    write.file = tmp_path / "out" / "rationales.jsonl"
    return write


def test_a_good_reply_becomes_a_row_that_can_be_trained_on(write):
    teacher = Teacher(good)
    found, lines = write(teacher)
    assert (found.rows, found.written, found.asked, found.flags) == (2, 2, 2, {})
    assert {key: lines[1][key] for key in ("input_text", "label", "rationale", "answer", "id", "group", "flags")} == {
        "input_text": "Fire is wet.",
        "label": "wrong",
        "rationale": "It is frozen water. Frozen things chill.",
        "answer": "wrong",
        "id": "r1",
        "group": "g",
        "flags": [],
    }
    loaded = load_examples(str(write.file), labels=LABELS)
    said = "It is frozen water. Frozen things chill."
    assert loaded.examples[0] == Example("Ice is cold.", 1, said, "right", "", "r0")
    assert loaded.drops.reasons == {}


def test_the_teacher_is_told_the_label_the_length_and_which_words_not_to_use(write):
    teacher = Teacher(good)
    write(teacher, sentences=(1, 3), task="Say whether a claim holds.")
    asked = teacher.asked[0]
    assert asked.startswith("Say whether a claim holds.\n\nInput:\nIce is cold.\n\nThe correct label is: right")
    assert "1 to 3 sentences" in asked
    assert 'any of the words "wrong", "right"' in asked
    assert asked.endswith("Final Answer: right")


@pytest.mark.parametrize(
    ("said", "flag", "complaint"),
    [
        ("Of course it is Right so.\nFinal Answer: right", "label word", 'not contain "Right"'),
        ("It is frozen, so it is cold.", "no answer", 'The last line must be "Final Answer:"'),
        ("It is frozen.\nFinal Answer: wrong", "another answer", "not the correct label"),
        ("Final Answer: right", "no rationale", "no reasoning"),
    ],
)
def test_a_flawed_reply_is_asked_for_again_with_what_was_wrong(write, said, flag, complaint):
    teacher = Teacher(lambda number, talk: said if number == 1 else good(number, talk))
    found, [line] = write(teacher, ROWS[:1])
    assert complaint in teacher.asked[1]
    assert teacher.talks[1][1] == {"role": "assistant", "content": said}
    assert (found.asked, found.flags, line["flags"], line["attempts"]) == (2, {}, [], 2)

    write.file.unlink()
    teacher = Teacher(lambda number, talk: said)
    found, [line] = write(teacher, ROWS[:1], attempts=2)
    assert (found.asked, found.flags, line["flags"]) == (2, {flag: 1}, [flag])
    assert line["label"] == "right"


def test_of_flawed_replies_the_least_flawed_is_kept(write):
    replies = ["It is frozen. It is right.\nFinal Answer: right", "right", "right, I say. Final Answer: wrong"]
    _, [line] = write(Teacher(lambda number, talk: replies[number - 1]), ROWS[:1])
    assert (line["rationale"], line["flags"], line["attempts"]) == ("It is frozen. It is right.", ["label word"], 1)


@pytest.mark.parametrize(
    "said",
    [
        "<think>right or wrong?</think>\nReasoning: It is frozen.\n\n**Final Answer:** right.",
        "**Reasoning:** It is frozen.\n**Final Answer**: *right*",
        "It is frozen.\nFINAL ANSWER: Right\nAnything else?",
        "It is frozen. Final Answer: right",
    ],
)
def test_replies_are_read_however_they_are_dressed(write, said):
    found, [line] = write(Teacher(lambda number, talk: said), ROWS[:1])
    assert (line["rationale"], line["answer"].lower(), found.flags) == ("It is frozen.", "right", {})


def test_a_second_run_asks_nothing_and_a_longer_one_only_for_what_is_new(write):
    write(Teacher(good))
    again = Teacher(good)
    found, lines = write(again)
    assert (again.talks, len(lines), found.before, found.written) == ([], 2, 2, 0)
    longer = Teacher(good)
    found, lines = write(longer, [*ROWS, Example("Coal is black.", 1)])
    assert (len(longer.talks), len(lines), found.before, found.written) == (1, 3, 2, 1)


def test_a_line_that_was_cut_short_is_asked_for_again(write):
    write(Teacher(good))
    whole = write.file.read_bytes()
    for cut in (5, 1):
        write.file.write_bytes(whole[:-cut])
        teacher = Teacher(good)
        found, lines = write(teacher)
        assert ([line["id"] for line in lines], found.before, len(teacher.talks)) == (["r0", "r1"], 1, 1)


def test_what_was_written_before_the_teacher_failed_is_kept(write):
    def say(number, talk):
        if number == 2:
            # Not only when the file is closed: a killed run closes nothing.
            assert len(write.file.read_text().splitlines()) == 1
            raise DualHeadError("the endpoint is down")
        return good(number, talk)

    with pytest.raises(DualHeadError, match="down"):
        write(Teacher(say))
    teacher = Teacher(good)
    found, lines = write(teacher)
    assert ([line["id"] for line in lines], found.before, len(teacher.talks)) == (["r0", "r1"], 1, 1)


def test_a_row_without_a_reply_is_counted_and_asked_for_the_next_time(write):
    found, lines = write(Teacher(lambda number, talk: None if number == 1 else good(number, talk)))
    assert (found.unanswered, [line["id"] for line in lines]) == (1, ["r1"])
    found, lines = write(Teacher(good))
    assert (found.unanswered, found.before, found.written, len(lines)) == (0, 1, 1, 2)


def test_a_flawed_reply_is_kept_where_the_next_attempt_gets_none(write):
    replies = ["It is frozen.", None]
    found, [line] = write(Teacher(lambda number, talk: replies[number - 1]), ROWS[:1])
    assert (line["flags"], found.unanswered) == (["no answer"], 0)


def test_equal_rows_are_asked_about_once_and_all_written(write):
    rows = [ROWS[0], Example("Ice is cold.", 1, id="twin"), Example("Ice is cold.", 0, id="other label")]
    teacher = Teacher(good)
    found, lines = write(teacher, rows)
    assert len(teacher.talks) == 2
    assert sorted(line["id"] for line in lines) == ["other label", "r0", "twin"]
    write.file.write_text("".join(json.dumps(line) + "\n" for line in lines if line["id"] != "twin"))
    teacher = Teacher(good)
    found, lines = write(teacher, rows)
    assert (teacher.talks, found.before, found.written, len(lines)) == ([], 2, 1, 3)


def test_rows_without_a_label_are_counted_and_not_asked_about(write):
    found, lines = write(Teacher(good), [Example("What?"), ROWS[0]])
    assert (found.unlabelled, found.written, len(lines)) == (1, 1, 1)


def test_shares_are_written_back_as_they_were(write):
    rows = [Example("Tea is warm.", (0.25, 0.75))]
    _, [line] = write(Teacher(good), rows)
    assert (line["label"], line["answer"]) == ([0.25, 0.75], "right")
    assert load_examples(str(write.file), labels=LABELS).examples[0].label == (0.25, 0.75)


def test_several_labels_of_a_row_are_written_by_name_so_that_their_names_are_read_back(write):
    rows = [Example("Tea is warm.", (1.0, 1.0)), Example("Ice is cold.", (0.0, 1.0)), Example("What?", (0.0, 0.0))]
    _, lines = write(Teacher(good), rows, labels=("false", "true"), multi_label=True)
    assert [line["label"] for line in lines] == [["false", "true"], ["true"], []]
    loaded = load_examples(str(write.file), multi_label=True)
    assert loaded.labels == ("false", "true")
    assert [row.label for row in loaded.examples] == [row.label for row in rows]


@pytest.mark.parametrize(("label", "said"), [((0.0, 0.0), "none"), ((1.0, 1.0), "wrong, right"), ((0.7, 0.3), "wrong")])
def test_the_teacher_is_told_all_labels_of_a_row_and_that_it_has_none(write, label, said):
    teacher = Teacher(lambda *_: GOOD.format(gold=said))
    found, [line] = write(teacher, [Example("Tea is warm.", label)])
    assert f"The correct label is: {said}\n" in teacher.asked[0]
    assert (line["answer"], found.flags) == (said, {})


def test_rows_are_asked_about_in_blocks_so_that_a_kill_costs_little(write):
    sizes = []

    def ask(talks):
        sizes.append(len(talks))
        return ((index, good(0, talk)) for index, talk in enumerate(talks))

    write(ask, [Example(f"n{i}", 1) for i in range(5)], at_once=2)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("changed", [{"name": "u"}, {"task": "Another."}, {"labels": ("bad", "right")}])
def test_rationales_of_another_teacher_task_or_labels_are_not_mixed(write, changed):
    write(Teacher(good))
    with pytest.raises(DualHeadError, match="Choose another output"):
        write(Teacher(good), **changed)


@pytest.mark.parametrize("content", ['{"input_text": "x", "label": 1}\n', "a line of text", "x\n"])
def test_a_file_of_other_things_is_left_alone(write, content):
    write.file.parent.mkdir()
    write.file.write_text(content)
    with pytest.raises(DualHeadError, match="not written by a teacher"):
        write(Teacher(good))
    assert write.file.read_text() == content
