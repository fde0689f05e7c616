"""Other people's files of answers: read as they were published, and written so that they read the same."""

import gzip
import json

import pytest

from dual_head import DualHeadError
from dual_head.evaluate import Answer, Question
from dual_head.evaluate.benchmarks import load_benchmark
from dual_head.evaluate.benchmarks.arena import V2
from dual_head.evaluate.exchange import instruction_of, read_answers
from dual_head.evaluate.metrics.measures import measure
from dual_head.evaluate.questions import load_questions

ASKED = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})


def exported(name, folder, questions, answers, system="m", **options):
    """The file that a benchmark writes for its own tools."""
    benchmark = load_benchmark(name)
    benchmark.write(folder, system, questions, answers, **options)
    return folder / benchmark.export.format(system)


def answered(questions, recorded):
    return {question.id: recorded.of(question) for question in questions}


def test_the_report_measures_the_text_that_is_exported(tmp_path):
    question, answer = Question(id="q", prompt="a"), Answer(question="q", replies=(" six ch. ",))
    written_file = exported("alpaca", tmp_path, [question], {"q": answer}, "me")
    (row,) = json.loads(written_file.read_text())
    metric = measure([question], {"q": answer}, metrics=["length"]).values["length"]["q"]
    assert len(row["output"]) == metric == 7


# ---- round trips of published files ----------------------------------------------------------------------


def test_published_alpaca_outputs_come_back_as_they_were(shared_data, tmp_path):
    file = shared_data / "eval" / "alpaca_eval" / "gpt4_1106_preview_outputs.json.gz"
    questions, _ = load_questions("alpaca", file)
    recorded = read_answers(file)
    assert recorded.model == "gpt4_1106_preview"
    written_file = exported("alpaca", tmp_path, questions, answered(questions, recorded), recorded.model)
    written = json.loads(written_file.read_text())
    published = json.loads(gzip.decompress(file.read_bytes()))
    # Spaces around an output are not a part of the answer.
    assert written == [{**row, "output": row["output"].strip()} for row in published]


@pytest.mark.parametrize("model", ["gpt-3.5-turbo-0125", "gpt-4-0613"])
def test_published_arena_answers_come_back_as_they_were(shared_data, tmp_path, model):
    folder = shared_data / "eval" / "arena_hard"
    questions, _ = load_questions("arena", folder / "v0.1_question.jsonl")
    file = folder / f"v0.1_answer_{model}.jsonl.gz"
    recorded = read_answers(file)
    assert recorded.model == model
    written_file = exported("arena", tmp_path, questions, answered(questions, recorded), model, tstamp=5.0)
    written = [json.loads(line) for line in written_file.read_text().splitlines()]
    published = {row["question_id"]: row for row in map(json.loads, gzip.decompress(file.read_bytes()).splitlines())}
    assert len(written) == 500
    for row in written:
        other = published[row["question_id"]]
        assert row.keys() == other.keys()
        assert (row["model_id"], row["tstamp"], len(row["answer_id"])) == (model, 5.0, len(other["answer_id"]))
        (theirs,) = other["choices"][0]["turns"]
        turns = [{"content": theirs["content"].strip(), "token_len": theirs["token_len"]}]
        assert row["choices"] == [{"index": 0, "turns": turns}]


def test_published_mt_bench_answers_come_back_as_they_were(shared_data, tmp_path):
    folder = shared_data / "eval" / "mt_bench"
    questions = [question for question in load_questions("mt_bench", folder)[0] if question.references]
    recorded = read_answers(folder / "reference_answer_gpt-4.jsonl")
    written_file = exported("mt_bench", tmp_path, questions, answered(questions, recorded), "gpt-4", tstamp=5.0)
    written = [json.loads(line) for line in written_file.read_text().splitlines()]
    published = [json.loads(line) for line in (folder / "reference_answer_gpt-4.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in written] == [row["question_id"] for row in published]
    for row, other in zip(written, published, strict=True):
        assert row.keys() == other.keys()
        assert row["choices"][0]["turns"] == [turn.strip() for turn in other["choices"][0]["turns"]]


# ---- what is written -------------------------------------------------------------------------------------


def test_alpaca_writes_one_text_for_whatever_was_asked(tmp_path):
    questions = [Question("1", "plain"), Question("2", ASKED[:1], category="x"), Question("3", ASKED)]
    answers = {name: Answer(question=name, replies=(f" said {name}\n",)) for name in "123"}
    written_file = exported("alpaca", tmp_path, questions, answers, "me")
    rows = json.loads(written_file.read_text())
    assert [row["instruction"] for row in rows] == ["plain", "a", "Human: a\n\nAssistant: b\n\nHuman: c"]
    assert rows[1] == {"dataset": "x", "instruction": "a", "output": "said 2", "generator": "me"}
    back = read_answers(written_file)
    assert [back.of(question).replies for question in questions] == [("said 1",), ("said 2",), ("said 3",)]


def test_tokens_are_written_only_where_they_are_known(tmp_path):
    questions = [Question("007", "a"), Question("x", "b")]
    answers = {
        "007": Answer(question="007", replies=("r",), tokens=(4,)),
        "x": Answer(question="x", replies=("",)),
    }
    written_file = exported("arena", tmp_path, questions, answers, "m", tstamp=1.0)
    first, second = (json.loads(line) for line in written_file.read_text().splitlines())
    assert (first["question_id"], first["choices"][0]["turns"]) == ("007", [{"content": "r", "token_len": 4}])
    assert second["choices"][0]["turns"] == [{"content": ""}]
    recorded = read_answers(written_file)
    assert [recorded.of(question) for question in questions] == [answers["007"], answers["x"]]
    written_file = exported("mt_bench", tmp_path, [Question("81", "a")], {"81": answers["x"]}, "m")
    row = json.loads(written_file.read_text())
    assert (row["question_id"], row["choices"]) == (81, [{"index": 0, "turns": [""]}])


def test_questions_of_arena_2_are_answered_in_its_own_layout(tmp_path):
    row = {"uid": "2edb", "category": "hard_prompt", "subcategory": "coding", "prompt": "write it"}
    (tmp_path / "question.jsonl").write_text(json.dumps(row) + "\n")
    ((question,), _) = load_questions("arena", tmp_path)
    answers = {"2edb": Answer(question="2edb", replies=(" done\n",), tokens=(3,))}
    written_file = exported("arena", tmp_path, [question], answers, "m", tstamp=5.0)
    line = json.loads(written_file.read_text())
    # What their judge reads.
    assert (line["uid"], line["model"], line["messages"][-1]["content"]["answer"]) == ("2edb", "m", "done")
    assert line.keys() == {"uid", "ans_id", "model", "messages", "tstamp"}
    assert line["messages"] == [
        {"role": "user", "content": "write it"},
        {"role": "assistant", "content": {"answer": "done"}},
    ]
    assert (len(line["ans_id"]), line["tstamp"]) == (22, 5.0)
    recorded = read_answers(written_file)
    assert (recorded.model, recorded.of(question)) == ("m", Answer(question="2edb", replies=("done",)))


def test_texts_and_several_turns_are_told_in_arena_2s_messages(tmp_path):
    questions = [Question("t", "plain", layout=V2), Question("c", ASKED, ("d",), layout=V2)]
    answers = {"t": Answer(question="t", replies=("r",)), "c": Answer(question="c", replies=("one", "two"))}
    written_file = exported("arena", tmp_path, questions, answers, "m")
    plain, talk = (json.loads(line)["messages"] for line in written_file.read_text().splitlines())
    assert plain[0] == {"role": "user", "content": "plain"}
    assert [turn["content"] for turn in talk] == ["a", "b", "c", {"answer": "one"}, "d", {"answer": "two"}]
    recorded = read_answers(written_file)
    assert [recorded.of(question) for question in questions] == [answers["t"], answers["c"]]


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    two = Question("q", ASKED, ("d",))
    with pytest.raises(DualHeadError, match="no second turn"):
        exported("alpaca", tmp_path, [two], {"q": Answer(question="q", replies=("a", "b"))}, "m")
    with pytest.raises(DualHeadError, match="no answer to 'q'"):
        exported("mt_bench", tmp_path, [two], {}, "m")
    assert not list(tmp_path.iterdir())


def test_a_conversation_is_told_in_one_text_with_its_speakers():
    assert instruction_of(Question("q", ASKED)) == "Human: a\n\nAssistant: b\n\nHuman: c"
    with_system = ({"role": "system", "content": "be brief"}, *ASKED[:1])
    assert instruction_of(Question("q", with_system)) == "be brief\n\nHuman: a"


# ---- what is read ----------------------------------------------------------------------------------------


def own(prompt, reply, **changes):
    row = {"question": prompt, "prompt": prompt, "follow_ups": [], "replies": [reply], "tokens": [2]}
    return json.dumps({**row, "finished": [True], "identity": "i", "decoding": {"max_new_tokens": 4}, **changes}) + "\n"


def test_our_own_file_gives_what_was_said_last_and_how_it_was_decoded(tmp_path):
    file = tmp_path / "base.jsonl"
    file.write_text(own("a", "old") + own("b", "b") + own("a", "new") + '{"question": "c", "pro')
    recorded = read_answers(file)
    assert recorded.decoding == {"max_new_tokens": 4}
    # Found by what is asked, whatever it is called; another question of that name is not answered.
    assert recorded.of(Question("z", "a")) == Answer(question="z", replies=("new",), tokens=(2,), finished=(True,))
    assert recorded.of(Question("a", "other")) is None
    assert recorded.of(Question("c", "c")) is None


def arena_2(answer, **changes):
    said = {"role": "assistant", "content": answer}
    row = {"uid": "u", "ans_id": "x", "model": "o3", "messages": [{"role": "user", "content": "a"}, said]}
    return json.dumps({**row, "tstamp": 1.5, **changes}) + "\n"


def test_answers_of_arena_2_are_read_without_what_was_thought(tmp_path):
    file = tmp_path / "o3.jsonl"
    file.write_text(arena_2({"thought": "hm", "answer": "yes"}, metadata={"token_len": 7, "header_count": {"h1": 0}}))
    recorded = read_answers(file)
    assert recorded.model == "o3"
    assert recorded.of(Question("u", "a")) == Answer(question="u", replies=("yes",), tokens=(7,))
    assert recorded.of(Question("other", "a")) is None


ANNOTATED = json.dumps(
    [
        {
            "instruction": "a",
            "output_1": "b",
            "generator_1": "ref",
            "output_2": "c",
            "generator_2": "mine",
            "preference": 1,
        }
    ]
)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.jsonl", own("a", "x", replies="text"), "is not an answer"),
        ("a.jsonl", own("a", "x", identity="j") + own("b", "x"), "several models"),
        ("a.jsonl", own("a", "x", decoding={"max_new_tokens": 5}) + own("b", "x"), "several decodings"),
        ("a.jsonl", '{"cut": \n' + own("a", "x"), "not whole JSON"),
        ("a.jsonl", '{"question_id": 1, "model_id": "m", "choices": []}\n', "is not an answer"),
        ("a.jsonl", arena_2({"answer": None}), r'is not an answer .*or "uid", "messages"'),
        ("a.jsonl", arena_2("text"), "no message has an answer"),
        ("a.jsonl", arena_2({"answer": "b"}, messages=None), "is not an answer"),
        ("a.jsonl", "[]\n[]\n", "is not an answer"),
        ("a.json", '[{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "c"}]', "Keep one of them"),
        ("a.json", '[{"instruction": "a", "output": "b"', "not whole JSON"),
        ("a.json", '[{"instruction": "a"}]', "is not an answer"),
        ("a.json", ANNOTATED, r"the answers of two: ref and mine\. Give the model_outputs\.json of one"),
        ("a.csv", "instruction,output_1,output_2\na,b,c\n", "the answers of two"),
        ("a.json", '["text"]', "is not an answer but text"),
        ("a.csv", 'instruction,output\na,"b\n', "ends within quotation marks"),
        ("a.json", "[]", "There is no answer in"),
    ],
)
def test_a_file_that_cannot_be_believed_is_refused(tmp_path, name, content, remedy):
    (tmp_path / name).write_text(content)
    with pytest.raises(DualHeadError, match=remedy):
        read_answers(tmp_path / name)
