"""Benchmarks read from their published layouts, sampled, and every row that gave no question counted."""

import gzip
import json

import pytest

from dual_head import DualHeadError
from dual_head.demo.world import parse_request
from dual_head.evaluate.benchmarks import BENCHMARKS
from dual_head.evaluate.benchmarks.arena import V2
from dual_head.evaluate.questions import load_questions


def user(text):
    return ({"role": "user", "content": text},)


def lines(file, *rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# ---- one layout after the other --------------------------------------------------------------------------


def test_hh_asks_what_comes_before_the_last_reply_and_once(tmp_path):
    asked = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    file = lines(
        tmp_path / "helpful-base.test.jsonl",
        {"chosen": f"{asked}\n\nAssistant: good", "rejected": f"{asked}\n\nAssistant: bad"},
        {"chosen": f"{asked}\n\nAssistant: another", "rejected": f"{asked}\n\nAssistant: third"},
        {"chosen": asked, "rejected": asked},
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "rejected": ""},
        {"prompt": "\n\nHuman: only\n\nAssistant:"},
        {"chosen": 3},
    )
    (first, second), drops = load_questions("hh", file)
    assert first.prompt == (*user("a"), {"role": "assistant", "content": "b"}, *user("c"))
    assert (first.asked, first.category) == (("c",), "helpful-base")
    assert second.prompt == user("only")
    assert (drops.rows, drops.kept) == (6, 2)
    assert drops.reasons == {
        "duplicate prompt": 1,
        "last turn is not the assistant's": 1,
        "no user's turn before the last reply": 1,
        "malformed row": 1,
    }


def test_a_question_with_an_image_is_refused_by_its_place(tmp_path):
    file = lines(tmp_path / "a.jsonl", {"instruction": "one"}, {"instruction": "What is it?", "image": "a.png"})
    with pytest.raises(DualHeadError, match=r"a\.jsonl:2: column 'image' holds an image"):
        load_questions("alpaca", file)


def test_a_question_without_an_id_is_named_by_its_prompt_wherever_it_stands(tmp_path):
    rows = [{"instruction": text, "dataset": "vicuna"} for text in ("one", "two", "three")]
    forward, _ = load_questions("alpaca", lines(tmp_path / "a.jsonl", *rows))
    backward, _ = load_questions("alpaca", lines(tmp_path / "b.jsonl", *reversed(rows)))
    assert [question.id for question in forward] == [question.id for question in reversed(backward)]
    assert len({question.id for question in forward}) == 3
    assert (forward[0].prompt, forward[0].category) == (user("one"), "vicuna")


def test_arena_is_read_in_both_of_its_layouts(tmp_path):
    file = lines(
        tmp_path / "question.jsonl",
        {"question_id": "q1", "category": "arena-hard-v0.1", "cluster": "Puzzles", "turns": [{"content": "a"}]},
        {"uid": "q2", "category": "hard_prompt", "subcategory": "coding", "prompt": "b"},
    )
    (first, second), _ = load_questions("arena", file)
    assert (first.id, first.prompt, first.category) == ("q1", user("a"), "Puzzles")
    assert (second.id, second.prompt, second.category) == ("q2", user("b"), "coding")
    assert (first.layout, second.layout) == ("", V2)


def test_mt_bench_takes_references_from_the_file_beside_it_and_does_not_ask_them(tmp_path):
    lines(
        tmp_path / "bench" / "question.jsonl",
        {"question_id": 101, "category": "reasoning", "turns": ["one", "two"], "reference": ["short", "shorter"]},
        {"question_id": 111, "category": "math", "turns": ["three", "four"], "reference": ["7", "8"]},
        {"question_id": 95, "category": "roleplay", "turns": ["five", "six"], "reference": ["unused", "unused"]},
    )
    answer = {"question_id": 101, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["good", "better"]}]}
    silent = {"question_id": 111, "model_id": "gpt-4", "choices": [{"index": 0, "turns": []}]}
    lines(tmp_path / "bench" / "reference_answer_gpt-4.jsonl", answer, silent)
    lines(tmp_path / "bench" / "judge_prompts.jsonl", {"name": "pair-v2", "prompt_template": "..."})
    questions, _ = load_questions("mt_bench", tmp_path / "bench")
    assert [(question.id, question.asked) for question in questions] == [
        ("101", ("one", "two")),
        ("111", ("three", "four")),
        ("95", ("five", "six")),
    ]
    assert [question.references for question in questions] == [("good", "better"), ("7", "8"), ()]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "p", "type": "homonyms", "label": "safe"}, "harmless"),
        ({"prompt": "p", "type": "contrast_homonyms", "label": "unsafe"}, "harmful"),
        ({"prompt": "p", "type": "safe_targets"}, "harmless"),
        ({"prompt": "p", "type": "contrast_discr"}, "harmful"),
        ({"goal": "p", "target": "Sure", "harmful": True}, "harmful"),
        ({"prompt": "p", "is_safe": False}, "harmful"),
        ({"prompt": "p", "safe": "1"}, "harmless"),
        ({"prompt": "p", "category": "Harmless"}, "harmless"),
        ({"prompt": "p", "response": ["a", "b"]}, ""),
        ({"chosen": "\n\nHuman: p\n\nAssistant: no", "label": "toxic"}, "harmful"),
    ],
)
def test_safety_tells_what_to_refuse_from_what_to_grant_where_a_column_says_so(tmp_path, row, kind):
    ((question,), _) = load_questions("safety", lines(tmp_path / "s.jsonl", row))
    assert (question.prompt, question.category) == (user("p"), kind)


def test_prompts_may_be_lines_tables_texts_or_conversations(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    (tmp_path / "p.csv").write_text('id,prompt,label\nx,"a, b",safe\n')
    lines(
        tmp_path / "p.jsonl", {"prompt": [*user("a"), {"role": "assistant", "content": "b"}]}, {"prompt": [*user("c")]}
    )
    (tmp_path / "p.json").write_text('["plain", {"instruction": "do", "id": 7, "category": "x"}]')
    texts, _ = load_questions("prompts", tmp_path / "p.txt")
    assert [question.prompt for question in texts] == ["one", " two "]
    ((cell,), _) = load_questions("safety", tmp_path / "p.csv")
    assert (cell.id, cell.prompt, cell.category) == ("x", user("a, b"), "harmless")
    (tmp_path / "p.csv").write_text("id,prompt,label\nx,a\u2028b\x85c,safe\n", encoding="utf-8")
    ((cell,), _) = load_questions("safety", tmp_path / "p.csv")
    assert (cell.prompt, cell.category) == (user("a\u2028b\x85c"), "harmless")  # no table ends a line there
    ((said,), drops) = load_questions("prompts", tmp_path / "p.jsonl")
    assert said.prompt == user("c")
    assert drops.reasons == {"last turn is not the user's": 1}
    (plain, do), _ = load_questions("prompts", tmp_path / "p.json")
    assert (plain.prompt, do.prompt, do.id, do.category) == ("plain", "do", "7", "x")


def test_texts_become_messages_and_single_messages_texts_on_demand(tmp_path):
    texts = lines(tmp_path / "p.jsonl", {"prompt": "p"})
    alpaca = lines(tmp_path / "a.jsonl", {"instruction": "p"})
    turns = lines(tmp_path / "t.jsonl", {"question_id": 1, "turns": ["a", "b"]})
    assert load_questions("prompts", texts, chat=True)[0][0].prompt == user("p")
    assert load_questions("alpaca", alpaca, chat=False)[0][0].prompt == "p"
    assert load_questions("mt_bench", turns, chat=True)[0][0].asked == ("a", "b")
    with pytest.raises(DualHeadError, match="Ask it as chat"):
        load_questions("mt_bench", turns, chat=False)


# ---- the demonstration world -----------------------------------------------------------------------------


def test_the_world_asks_distinct_requests_and_more_of_them_hold_the_fewer():
    few, drops = load_questions("world", num_samples=30, seed=3)
    many, _ = load_questions("world", num_samples=200, seed=3)
    assert len({question.prompt for question in many}) == 200
    assert many[:30] == few
    assert drops.kept == 30
    for question in few:
        request = parse_request(question.prompt)
        assert question.category == ("harmful" if request.harmful else "harmless")
    assert load_questions("world", num_samples=30, seed=4)[0] != few
    ((spoken,), _) = load_questions("world", num_samples=1, seed=3, chat=True)
    assert spoken.prompt == user(few[0].prompt.removeprefix("user : ").removesuffix(" assistant :"))


def test_all_of_the_world_is_asked_when_no_number_is_given():
    questions, _ = load_questions("world")
    assert len(questions) == len({question.id for question in questions}) == 432
    with pytest.raises(DualHeadError, match="432"):
        load_questions("world", num_samples=433)


# ---- how many, and what is wrong -------------------------------------------------------------------------


def test_a_sample_is_random_by_its_seed_and_keeps_the_order_of_the_file(tmp_path):
    file = lines(tmp_path / "p.jsonl", *({"prompt": f"{i}", "id": i} for i in range(100)))
    some, drops = load_questions("prompts", file, num_samples=10)
    numbers = [int(question.id) for question in some]
    assert numbers == sorted(numbers)
    assert numbers != list(range(10))
    assert load_questions("prompts", file, num_samples=10)[0] == some
    assert load_questions("prompts", file, num_samples=10, seed=1)[0] != some
    assert drops.notes == {"a random 10 of 100 questions, seed 0": 1}
    everything, drops = load_questions("prompts", file, num_samples=101)
    assert len(everything) == 100
    assert drops.notes == {"asked for 101 questions; there are 100": 1}


def test_empty_and_repeated_prompts_and_ids_are_dropped_and_counted(tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [
        {"prompt": "a", "id": 1},
        {"prompt": " "},
        {"prompt": "a", "id": 2},
        {"prompt": "b", "id": 1},
        {"text": "c"},
    ]
    lines(file, *rows)
    file.write_text(file.read_text() + '{"prompt": "cut of')
    questions, drops = load_questions("prompts", file)
    assert [question.id for question in questions] == ["1"]
    assert drops.reasons == {
        "empty prompt": 1,
        "duplicate prompt": 1,
        "another prompt with this id": 1,
        "no column of a prompt": 1,
        "malformed line": 1,
    }
    assert drops.first["duplicate prompt"] == f"{file}:3"


def test_a_prompt_is_read_with_all_that_belongs_to_it_and_the_rest_is_noted(tmp_path):
    system = {"role": "system", "content": "s"}
    file = lines(
        tmp_path / "p.jsonl",
        {"instruction": "Translate", "input": "cat"},
        {"system": "s", "Prompt": "q"},
        {"conversations": [{"from": "human", "value": "h"}]},
        {"prompt": [*user("t")], "tools": [{"type": "function"}]},
        {"prompt": "<|im_start|>user"},
        {"messages": [*user("a"), {"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "assistant", "content": "b", "tool_calls": [1]}, *user("a")]},
        {"prompt": None},
    )
    questions, drops = load_questions("prompts", file)
    asked = ["Translate\n\ncat", (system, *user("q")), user("h"), user("t"), "<|im_start|>user"]
    assert [question.prompt for question in questions] == asked
    assert drops.notes == {
        "column 'tools' left out": 1,
        "a text that a chat template has written before: it holds <|im_start|>": 1,
    }
    assert drops.reasons == {
        "last turn is not the user's": 1,
        "a message with tool_calls, which are not read": 1,
        "empty prompt": 1,
    }


def test_what_a_benchmark_leaves_out_of_a_row_is_noted(tmp_path):
    _, drops = load_questions("alpaca", lines(tmp_path / "a.jsonl", {"instruction": "Translate", "input": "cat"}))
    assert drops.notes == {"column 'input' left out": 1}


def test_transcripts_may_end_their_lines_as_on_windows(tmp_path):
    file = lines(tmp_path / "hh.jsonl", {"chosen": "\r\n\r\nHuman: p\r\n\r\nAssistant: a"})
    assert load_questions("hh", file)[0][0].prompt == user("p")


def test_what_cannot_be_asked_is_refused_with_the_remedy(tmp_path):
    empty = lines(tmp_path / "empty.jsonl", {"prompt": ""})
    lines(tmp_path / "two" / "question.jsonl", {"prompt": "a"})
    lines(tmp_path / "two" / "old_question.jsonl", {"prompt": "a"})
    (tmp_path / "none").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    cases = {
        "Did you mean 'arena'": ("arenas", None, {}),
        "at least 1, not 0": ("prompts", empty, {"num_samples": 0}),
        "No usable question": ("prompts", empty, {}),
        "needs a source": ("prompts", None, {}),
        "has no files": ("world", empty, {}),
        "has 2 of them": ("arena", tmp_path / "two", {}),
        "has none": ("arena", tmp_path / "none", {}),
        "There is no file": ("hh", tmp_path / "absent.jsonl", {}),
        "Save it as UTF-8": ("prompts", tmp_path / "latin.txt", {}),
    }
    for remedy, (name, source, options) in cases.items():
        with pytest.raises(DualHeadError, match=remedy):
            load_questions(name, source, **options)


def test_where_nothing_is_given_the_published_file_is_fetched(tmp_path, monkeypatch):
    import huggingface_hub

    file, asked = lines(tmp_path / "alpaca_eval.json", {"instruction": "p"}), []

    def fetch(name, file_name, *, repo_type):
        asked.append((name, file_name, repo_type))
        if name.startswith("lmarena"):
            raise OSError("offline")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert load_questions("alpaca")[0][0].prompt == user("p")
    assert asked == [("tatsu-lab/alpaca_eval", "alpaca_eval.json", "dataset")]
    with pytest.raises(DualHeadError, match=r"offline Give a copy of it as the source\."):
        load_questions("arena")


def test_the_split_that_is_given_is_read_and_else_the_published_one(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(name, *, data_dir, split):
        asked.append((name, split))
        return [{"prompt": "p", "turns": ["a", "b"], "chosen": "\n\nHuman: p\n\nAssistant: no"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    load_questions("safety")
    load_questions("safety", split="other")
    load_questions("hh", split="train")
    load_questions("hh")
    load_questions("mt_bench", "HuggingFaceH4/mt_bench_prompts")
    load_questions("safety", "some/set")
    assert asked == [
        ("natolambert/xstest-v2-copy", "prompts"),
        ("natolambert/xstest-v2-copy", "other"),
        ("Anthropic/hh-rlhf", "train"),
        ("Anthropic/hh-rlhf", "test"),
        ("HuggingFaceH4/mt_bench_prompts", "train"),
        ("some/set", "test"),
    ]
    lines(tmp_path / "train.jsonl", {"prompt": "a"})
    lines(tmp_path / "test.jsonl", {"prompt": "b"})
    assert load_questions("prompts", tmp_path)[0][0].prompt == "b"
    assert load_questions("prompts", tmp_path, split="train")[0][0].prompt == "a"


def test_a_split_that_cannot_be_read_is_said(tmp_path):
    file = lines(tmp_path / "p.jsonl", {"prompt": "a"})
    assert not load_questions("prompts", file)[1].notes
    (note,) = load_questions("prompts", file, split="train")[1].notes
    assert "no split 'train' was looked for" in note
    with pytest.raises(DualHeadError, match="Leave source and split out"):
        load_questions("world", split="train")


SHOUTED = '''"""Words, shouted."""
from dual_head.evaluate import Question
from dual_head.evaluate.benchmarks import Benchmark


class BENCHMARK(Benchmark):
    graded = True

    def question(self, row):
        return Question("", row["word"].upper())

    def write(self, folder, system, questions, answers):
        (folder / f"{system}.txt").write_text(" ".join(answers[question.id].replies[0] for question in questions))
'''


def test_a_benchmark_of_another_package_is_one_file(tmp_path, install):
    install("benchmarks", "shouted", SHOUTED)
    assert BENCHMARKS.summaries()["shouted"] == "Words, shouted."
    assert load_questions("shouted", lines(tmp_path / "w.jsonl", {"word": "a"}))[0][0].prompt == "A"


def test_a_benchmark_that_is_none_is_refused_by_name(install):
    install("benchmarks", "odd", "BENCHMARK = 3")
    with pytest.raises(DualHeadError, match=r"benchmark 'odd' of acme-odd 1\.0.*is broken.*not a subclass"):
        load_questions("odd")


# ---- the files that others published ---------------------------------------------------------------------


def test_the_published_benchmarks_are_read_whole(shared_data):
    counts = {
        name: len(load_questions(name, shared_data / place)[0])
        for name, place in {
            "alpaca": "eval/alpaca_eval",
            "arena": "eval/arena_hard",
            "mt_bench": "eval/mt_bench",
            "safety": "pku_safe_rlhf",
        }.items()
    }
    assert counts == {"alpaca": 805, "arena": 500, "mt_bench": 80, "safety": 930}


def test_hh_gives_a_question_for_nearly_every_row(shared_data):
    questions, drops = load_questions("hh", shared_data / "hh_rlhf")
    assert drops.rows == 2354 + 2749 + 2312
    assert len(questions) > 0.99 * drops.rows
    assert {question.category for question in questions} == {
        "harmless-base",
        "helpful-base",
        "helpful-rejection-sampled",
    }
    assert all(question.prompt[-1]["role"] == "user" for question in questions)


def test_mt_bench_knows_the_thirty_reference_answers(shared_data):
    questions, _ = load_questions("mt_bench", shared_data / "eval" / "mt_bench")
    known = [question for question in questions if question.references]
    assert {question.category for question in known} == {"math", "reasoning", "coding"}
    assert len(known) == 30
    assert all(len(question.references) == len(question.asked) == 2 for question in known)


def test_a_gzipped_file_reads_as_the_plain_one(tmp_path):
    plain = lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert load_questions("prompts", tmp_path / "p.jsonl.gz")[0] == load_questions("prompts", plain)[0]
