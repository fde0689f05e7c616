"""A model behind an endpoint is a system: asked turn by turn, kept like any other, and never its own judge."""

import json

import pytest

from dual_head import DualHeadError
from dual_head.cli import main
from dual_head.evaluate import Decoding, Question
from dual_head.evaluate.judges.independence import require_independent
from dual_head.evaluate.systems import fits, open_system, parse_systems
from dual_head.evaluate.systems.store import answer_all

GREEDY = Decoding(max_new_tokens=7)


def user(text):
    return {"role": "user", "content": text}


def system(endpoint, **options):
    (spec,) = parse_systems([f"openai:vendor/tiny@{endpoint.url}"])
    return open_system(spec, endpoint_options={"max_retries": 0, **options})


def test_each_turn_is_asked_after_what_was_replied_before(endpoint):
    endpoint.answer = lambda number, body: endpoint.completion(f" reply {len(body['messages'])} ", wrote=5)
    question = Question("q", (user("a"),), ("b",))
    (answer,) = system(endpoint).answer([question], GREEDY)
    assert (answer.replies, answer.tokens, answer.finished) == (("reply 1", "reply 3"), (5, 5), (True, True))
    first, second = endpoint.bodies
    assert first["messages"] == [user("a")]
    assert second["messages"] == [user("a"), {"role": "assistant", "content": "reply 1"}, user("b")]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("vendor/tiny", 7, 0.0)
    assert not {"top_p", "seed"} & first.keys()


def test_answers_come_in_the_order_of_the_questions_and_are_kept(endpoint, tmp_path):
    def answer(number, body):
        endpoint.sleep(0.05 * (number == 1))
        return endpoint.completion(body["messages"][0]["content"].upper(), finish="length")

    endpoint.answer = answer
    questions = [Question(name, (user(name),)) for name in ("a", "b", "c")]
    it = system(endpoint, concurrency=3)
    assert it.name == "tiny"
    replies = answer_all(it, questions, GREEDY, tmp_path)
    assert [(name, own.replies, own.finished) for name, own in replies.items()] == [
        ("a", ("A",), (False,)),
        ("b", ("B",), (False,)),
        ("c", ("C",), (False,)),
    ]
    assert answer_all(system(endpoint), questions, GREEDY, tmp_path) == replies
    assert len(endpoint.bodies) == 3  # the second time nothing was asked


def test_drawn_replies_send_how_they_are_drawn(endpoint):
    drawn = Decoding(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3)
    list(system(endpoint).answer([Question("q", (user("a"),))], drawn))
    (body,) = endpoint.bodies
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 3)
    with pytest.raises(DualHeadError, match="takes no top_k"):
        fits([Question("q", (user("a"),))], [system(endpoint)], Decoding(temperature=0.5, top_k=5))
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    ("text", "alpha", "shown"),
    [("@1.5", 1.5, {"all": 1.5}), ("@a:0.5+b:-1", {"a": 0.5, "b": -1.0}, {"a": 0.5, "b": -1.0})],
)
def test_a_server_of_guides_is_asked_at_a_strength_with_or_without_a_models_name(endpoint, text, alpha, shown):
    named, unnamed, plain = (
        open_system(spec, endpoint_options={"max_retries": 0})
        for spec in parse_systems(
            [f"a=openai:vendor/tiny@{endpoint.url}{text},b={endpoint.url}{text},c={endpoint.url}"]
        )
    )
    status, headers, body = endpoint.completion("b")
    in_body = (status, headers, json.dumps({**json.loads(body), "alpha": alpha}))
    answers = [in_body, (status, {"dual-head-alpha": "1.5"}, body), (status, headers, body)]
    endpoint.answer = lambda number, _: answers[number - 1]
    for one in (named, unnamed, plain):
        list(one.answer([Question("q", (user("a"),))], GREEDY))
    assert [(body["model"], body.get("alpha")) for body in endpoint.bodies] == [
        ("vendor/tiny", alpha),
        (None, alpha),
        (None, None),
    ]
    assert (named.alpha, plain.alpha) == (shown, {})
    assert len({named.identity, unnamed.identity, plain.identity}) == 3


def refusing(endpoint, word):
    """An endpoint with a filter of contents, which takes no message of this word."""

    def answer(number, body):
        refused = body["messages"][-1]["content"] == word
        return endpoint.failure(400, "filtered") if refused else endpoint.completion("a b c d e f")

    return answer


def test_a_question_without_a_reply_is_named_and_the_others_are_kept(endpoint, tmp_path, caplog):
    endpoint.answer = refusing(endpoint, "b")
    questions = [Question(name, (user(name),), ("again",)) for name in ("a", "b", "c")]
    assert list(answer_all(system(endpoint), questions, GREEDY, tmp_path)) == ["a", "c"]
    assert caplog.messages == ["'tiny' gave no reply to the question 'b': 400: filtered."]
    assert sorted(endpoint.asked) == ["a", "again", "again", "b", "c"]
    endpoint.answer = lambda number, body: endpoint.completion("at last")
    answers = answer_all(system(endpoint), questions, GREEDY, tmp_path)
    assert list(answers) == ["a", "b", "c"]
    assert endpoint.asked[5:] == ["b", "again"]  # what is there is not paid for twice


def test_replies_before_an_endpoint_is_down_are_kept(endpoint, tmp_path):
    endpoint.answer = lambda number, body: endpoint.completion("yes") if number <= 5 else endpoint.failure(503, "busy")
    questions = [Question(str(i), (user(str(i)),)) for i in range(40)]
    with pytest.raises(DualHeadError, match=r"8 requests in a row .*What came is kept"):
        answer_all(system(endpoint, concurrency=1), questions, GREEDY, tmp_path, batch_size=40)
    endpoint.answer, endpoint.bodies[:] = lambda number, body: endpoint.completion("again"), []
    replies = answer_all(system(endpoint, concurrency=1), questions, GREEDY, tmp_path, batch_size=40)
    assert [answer.replies for answer in replies.values()].count(("yes",)) == 5
    assert len(endpoint.bodies) == 35


def test_a_question_that_an_endpoint_refuses_may_be_left_out_for_all(endpoint, tmp_path, capsys):
    endpoint.answer = refusing(endpoint, "two")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{word}", "id": "{word}"}}\n' for word in ("one", "two")))
    arguments = ["eval", "prompts", "--source", str(tmp_path / "p.jsonl"), "--output_dir", str(tmp_path / "out")]
    models = f"once={endpoint.url},best=best_of:2:rule:concise:of:{endpoint.url}"
    arguments += ["--models", models, "--chat", "--temperature", "1", "--judge", "rule:concise"]
    assert main(arguments) == 2
    assert "'once' lacks 1 of 2 (two)" in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--allow_missing"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["benchmark"]["questions"] == 1


def test_as_many_questions_are_asked_at_once_as_the_endpoint_takes(endpoint, tmp_path):
    def answer(number, body):
        endpoint.sleep(0.3)
        return endpoint.completion("b")

    endpoint.answer = answer
    questions = [Question(str(n), (user(f"question {n}"),)) for n in range(6)]
    answer_all(system(endpoint, concurrency=6), questions, GREEDY, tmp_path, batch_size=2)
    assert 2 < endpoint.most_at_once <= 6


def test_a_text_is_left_out_with_the_flag_that_makes_it_a_message(endpoint):
    kept, report = fits([Question("t", "a"), Question("c", (user("a"),))], [system(endpoint)], GREEDY)
    assert [question.id for question in kept] == ["c"]
    assert list(report.reasons) == ["'tiny' answers conversations, and it is a text (--chat)"]


def test_a_strength_that_a_server_passes_over_is_an_error(endpoint):
    (spec,) = parse_systems(["gpt=openai:tiny@1.5"])
    gpt = open_system(spec, endpoint_options={"base_url": endpoint.url})
    with pytest.raises(DualHeadError, match="it serves no guides"):
        list(gpt.answer([Question("q", (user("a"),))], GREEDY))


def test_an_unknown_option_is_refused(endpoint):
    with pytest.raises(DualHeadError, match="Did you mean 'concurrency'"):
        system(endpoint, concurency=2)


def test_a_password_in_the_address_is_in_no_path(endpoint):
    (spec,) = parse_systems([f"me=openai:tiny@{endpoint.url.replace('://', '://bob:hunter2@')}"])
    assert open_system(spec).path == f"openai:tiny@{endpoint.url}"


def test_an_endpoint_does_not_judge_itself(endpoint):
    it = system(endpoint)
    with pytest.raises(DualHeadError, match="is the system 'tiny', so it is not an independent judge"):
        require_independent([it], [it.path])
    require_independent([it], ["openai:other"])


def test_the_command_compares_an_endpoint_with_a_file(endpoint, tmp_path):
    endpoint.answer = lambda number, body: endpoint.completion("a b c d e f")
    rows = [{"prompt": f"question {i}", "id": str(i)} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = [{"instruction": row["prompt"], "output": "no no no no"} for row in rows]
    (tmp_path / "file.json").write_text(json.dumps(outputs))
    arguments = ["eval", "prompts", "--source", str(tmp_path / "p.jsonl"), "--output_dir", str(tmp_path / "out")]
    arguments += ["--models", f"file={tmp_path / 'file.json'},gpt=openai:tiny@{endpoint.url}", "--judge", "rule"]
    assert main([*arguments, "--max_new_tokens", "9", "--endpoint_option", "concurrency=2"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (pair,) = report["pairs"]
    assert (pair["a"], pair["wins"], pair["losses"]) == ("gpt", 3, 0)
    assert report["systems"][1]["path"] == f"openai:tiny@{endpoint.url}"
    assert endpoint.most_at_once <= 2


def test_the_command_compares_strengths_of_one_server_and_the_best_of_its_samples(endpoint, tmp_path):
    def answer(number, body):
        words = "a b c d e" if body["alpha"] == 1.5 else ["a b c d e f g h", "a b c d e f"][body["seed"]]
        status, headers, reply = endpoint.completion(words)
        return status, headers, json.dumps({**json.loads(reply), "alpha": body["alpha"]})

    endpoint.answer = answer
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    models = [f"sampled={endpoint.url}@0", f"best=best_of:2:rule:concise:of:{endpoint.url}@0", f"at={endpoint.url}@1.5"]
    arguments = ["eval", "prompts", "--source", str(tmp_path / "p.jsonl"), "--output_dir", str(tmp_path / "out")]
    arguments += ["--models", ",".join(models), "--judge", "rule:concise", "--temperature", "1"]
    assert main([*arguments, "--endpoint_option", "concurrency=1"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [system["alpha"] for system in report["systems"]] == [{"all": 0.0}, {"all": 0.0}, {"all": 1.5}]
    (answers,) = (tmp_path / "out").rglob("best*.jsonl")
    assert [json.loads(line)["replies"] for line in answers.read_text().splitlines()] == [["a b c d e f"]] * 2
