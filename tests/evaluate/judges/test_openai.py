"""A judge behind an endpoint that is slow, fails, limits, talks nonsense or is not there."""

import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from dual_head import DualHeadError
from dual_head.evaluate import Answer, Comparison, Question
from dual_head.evaluate.benchmarks import load_benchmark
from dual_head.evaluate.endpoints.client import FAILURES
from dual_head.evaluate.judges import load_judge
from dual_head.evaluate.judges.verdicts import grade_all, judge_pairs
from dual_head.evaluate.options import EvaluationOptions
from dual_head.evaluate.report.tables import tables
from dual_head.evaluate.run import evaluate

QUESTION = Question("q", "How far is the moon?")
PAIR = Comparison(QUESTION, ("far",), ("near",))


def judge_at(endpoint, **options):
    return load_judge(f"openai:tiny@{endpoint.url}", **options)


def one_verdict(endpoint, **options):
    ((index, verdict),) = judge_at(endpoint, **options).compare([PAIR])
    assert index == 0
    return verdict


def pairs(count):
    return [Comparison(Question(f"q{i}", f"question {i}"), ("far",), ("near",)) for i in range(count)]


# ---- asking ------------------------------------------------------------------------------------------------


def test_a_model_is_asked_as_mt_bench_asks_and_its_verdict_is_the_first_answers(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.answer = lambda number, body: endpoint.completion("A is right.\n\n[[A]]")
    judge = judge_at(endpoint)
    ((_, verdict),) = judge.compare([PAIR])
    assert verdict.value == 1
    (body,) = endpoint.bodies
    assert (body["model"], body["temperature"], body["seed"]) == ("tiny", 0, 0)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "impartial judge" in body["messages"][0]["content"]
    assert body["messages"][1]["content"] == (
        "[User Question]\nHow far is the moon?\n\n[The Start of Assistant A's Answer]\nfar\n[The End of Assistant A's "
        "Answer]\n\n[The Start of Assistant B's Answer]\nnear\n[The End of Assistant B's Answer]"
    )
    assert endpoint.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in judge.identity + judge.name
    assert (judge.name, judge.symmetric) == ("tiny", False)


def test_what_a_verdict_used_is_counted_and_priced(endpoint):
    endpoint.answer = lambda number, body: endpoint.completion("[[B]]", read=2000, wrote=500)
    verdict = one_verdict(endpoint, input_price=2.5, output_price=10.0)
    assert verdict.value == 0
    assert verdict.used == {"requests": 1, "input_tokens": 2000, "output_tokens": 500, "cost": 0.005 + 0.005}
    assert "cost" not in one_verdict(endpoint).used  # nobody said what it costs


def test_grades_are_asked_for_one_answer_at_a_time(endpoint):
    endpoint.answer = lambda number, body: endpoint.completion("Good.\nRating: [[8]]")
    ((_, verdict),) = judge_at(endpoint).grade([(QUESTION, ("far",))])
    assert verdict.value == 8
    assert "near" not in endpoint.asked[0]


def test_as_many_requests_are_under_way_as_concurrency_says_and_no_more(endpoint):
    together = threading.Barrier(3)

    def answer(number, body):
        together.wait(timeout=10)  # nobody is answered before three have asked
        return endpoint.completion("[[A]]")

    endpoint.answer = answer
    verdicts = dict(judge_at(endpoint, concurrency=3).compare(pairs(9)))
    assert [verdicts[i].value for i in range(9)] == [1] * 9
    assert endpoint.most_at_once == 3


def test_verdicts_come_as_soon_as_they_are_known(endpoint):
    go_on = threading.Event()

    def answer(number, body):
        if "question 0" in body["messages"][-1]["content"]:
            assert go_on.wait(timeout=10)
        return endpoint.completion("[[A]]")

    endpoint.answer = answer
    verdicts = judge_at(endpoint, concurrency=2).compare(pairs(4))
    assert {next(verdicts)[0] for _ in range(3)} == {1, 2, 3}  # the first question is still being thought about
    go_on.set()
    assert [index for index, _ in verdicts] == [0]


def test_a_process_that_is_interrupted_waits_for_no_reply(endpoint):
    before, waited_for = threading.enumerate(), []

    def answer(number, body):
        waited_for.extend(t.name for t in threading.enumerate() if t not in before and not t.daemon)
        return endpoint.completion("[[A]]")

    endpoint.answer = answer
    list(judge_at(endpoint, concurrency=2).compare(pairs(3)))
    assert (len(endpoint.bodies), waited_for) == (3, [])


def test_requests_a_minute_are_limited_and_retries_are_requests(endpoint):
    endpoint.answer = lambda number, body: endpoint.failure(500) if number == 1 else endpoint.completion("[[A]]")
    begin = time.monotonic()
    assert len(list(judge_at(endpoint, requests_per_minute=1200, concurrency=4).compare(pairs(4)))) == 4
    assert len(endpoint.bodies) == 5
    assert time.monotonic() - begin >= 4 * 60 / 1200  # five requests, four gaps of 50 ms


def test_letters_with_log_probabilities_give_a_soft_preference(endpoint):
    endpoint.answer = lambda number, body: endpoint.completion("m", first_token={"m": -0.25, " m": -3.0, "M": -1.75})
    verdict = one_verdict(endpoint, template="alpaca")
    first = 2.718281828**-0.25 + 2.718281828**-3
    assert verdict.value == pytest.approx(first / (first + 2.718281828**-1.75))
    assert (endpoint.bodies[0]["logprobs"], endpoint.bodies[0]["top_logprobs"]) == (True, 5)
    endpoint.answer = lambda number, body: endpoint.completion("M")  # an endpoint that tells no probabilities
    assert one_verdict(endpoint, template="alpaca").value == 0
    endpoint.answer = lambda number, body: endpoint.completion("Both", first_token={"Both": -0.1, "The": -2.0})
    assert one_verdict(endpoint, template="alpaca").flaw == "unparsable: neither m nor M is likely"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens", "none"])
def test_a_replys_length_is_limited_under_the_name_that_the_endpoint_knows(endpoint, limit):
    judge = judge_at(endpoint, limit=limit, max_tokens=7)
    list(judge.compare([PAIR]))
    (body,) = endpoint.bodies
    assert {name: body[name] for name in body if name.startswith("max_")} == ({} if limit == "none" else {limit: 7})
    usual = judge_at(endpoint, max_tokens=7)
    assert (judge.identity == usual.identity) == (limit == "max_tokens")  # what was kept under the usual name counts


# ---- faults of one answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_a_request_that_fails_at_first_is_tried_again(endpoint, status):
    endpoint.answer = lambda number, body: endpoint.failure(status) if number <= 2 else endpoint.completion("[[A]]")
    verdict = one_verdict(endpoint)
    assert (verdict.value, verdict.used["requests"], len(endpoint.bodies)) == (1, 3, 3)


def test_a_rate_limit_says_how_long_to_wait_and_is_heeded(endpoint):
    def answer(number, body):
        if number == 1:
            return 429, {"Retry-After": "0.15"}, "{}"
        return endpoint.completion("[[A]]")

    endpoint.answer = answer
    begin = time.monotonic()
    assert one_verdict(endpoint).value == 1
    assert time.monotonic() - begin >= 0.15


def test_a_slow_answer_is_no_answer(endpoint):
    gone = threading.Event()

    def answer(number, body):
        gone.wait(timeout=10)
        return endpoint.completion("[[A]]")

    endpoint.answer = answer
    begin = time.monotonic()
    verdict = one_verdict(endpoint, timeout=0.1, max_retries=0)
    assert time.monotonic() - begin < 3  # long before the answer would have come
    gone.set()
    assert (verdict.value, verdict.flaw) == (None, "no answer: no whole reply came within 0.1 s")
    assert verdict.used == {"requests": 1}


@pytest.mark.parametrize(
    "nonsense",
    [
        (200, {}, "{not json"),
        (200, {"Content-Type": "text/html"}, "<html>Welcome</html>"),
        (200, {}, '{"error": {"message": "overloaded"}}'),
        (200, {}, '{"choices": []}'),
        (200, {}, "[1, 2]"),
    ],
)
def test_what_is_no_completion_is_no_answer(endpoint, nonsense):
    endpoint.answer = lambda number, body: nonsense
    verdict = one_verdict(endpoint)
    assert verdict.value is None
    assert verdict.flaw.startswith("no answer: the reply is not a chat completion")


@pytest.mark.parametrize(
    ("said", "finish", "flaw"),
    [
        ("I like both.", "stop", "unparsable: no verdict in it"),
        ("Both: [[A]] [[B]]", "stop", "unparsable: contradicting verdicts [[A]], [[B]]"),
        ("Let me think", "length", "unparsable: no verdict in it; it was cut at 1024 tokens"),
        (None, "stop", "unparsable: no verdict in it"),
    ],
)
def test_words_without_a_verdict_are_kept_and_are_no_tie(endpoint, said, finish, flaw):
    endpoint.answer = lambda number, body: endpoint.completion(said, finish=finish)
    verdict = one_verdict(endpoint)
    assert (verdict.value, verdict.flaw, verdict.said) == (None, flaw, said or "")
    assert verdict.used["output_tokens"] == 3  # it was paid for


def odd(content: object = "[[A]]", **changes):
    """A completion in which something is of another type than it should be."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    logprobs = changes.pop("logprobs", None)
    body = {"id": "1", "choices": [{**choice, "logprobs": logprobs}], "usage": usage, **changes}
    return 200, {}, json.dumps(body)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"type": "text", "text": "So: [["}, {"type": "text", "text": "A]]"}], "So: [[A]]"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "[[B]]"}]}, "[[A]]"], "[[A]]"),
        (["[[A]] \ud83d"], "[[A]] \ufffd"),  # half a character, which no file takes
    ],
)
def test_a_reply_in_parts_is_read_as_one_text_that_can_be_written(endpoint, parts, said):
    endpoint.answer = lambda number, body: odd(parts)
    verdict = one_verdict(endpoint)
    assert (verdict.value, verdict.said) == (1, said)


@pytest.mark.parametrize(
    "reply",
    [
        odd(5),
        odd({"text": "[[A]]"}),
        odd([None]),
        odd([{"type": "text", "text": 5}]),
        odd(choices={"a": 1}),
        odd(choices=[None]),
        odd(choices=[{"message": "[[A]]"}]),
    ],
)
def test_a_reply_that_is_no_text_is_no_answer(endpoint, reply):
    endpoint.answer = lambda number, body: reply
    verdict = one_verdict(endpoint)
    assert verdict.value is None
    assert verdict.flaw.startswith("no answer: the reply is not a chat completion")


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "many", "completion_tokens": None}, {"prompt_tokens": float("nan")}, [1], "much"]
)
def test_a_use_that_is_no_number_is_unknown_and_the_verdict_counts(endpoint, usage):
    endpoint.answer = lambda number, body: odd(usage=usage)
    verdict = one_verdict(endpoint, input_price=1.0)
    assert verdict.value == 1
    assert verdict.used == {"requests": 1, "input_tokens": 0, "output_tokens": 0, "cost": 0}


GOOD = [{"token": "m", "logprob": -1.0}, {"token": "M", "logprob": -1.0}]


@pytest.mark.parametrize(
    ("first", "value"),
    [
        ({"token": None, "logprob": None}, 1),
        ({"token": "M", "logprob": float("nan"), "top_logprobs": 5}, 1),
        ({"token": "m", "logprob": -1.0, "top_logprobs": [{"token": None, "logprob": -0.1}, *GOOD]}, 0.5),
        ({"token": "m", "logprob": -1.0, "top_logprobs": [{"token": "m", "logprob": 10**4}, None, *GOOD]}, 0.5),
        (None, 1),
        ("m", 1),
    ],
)
def test_tokens_without_a_probability_are_left_out_and_without_any_the_words_count(endpoint, first, value):
    endpoint.answer = lambda number, body: odd("m", logprobs={"content": [first]})
    assert one_verdict(endpoint, template="alpaca").value == value
    endpoint.answer = lambda number, body: odd("m", logprobs={"content": first})
    assert one_verdict(endpoint, template="alpaca").value == 1


def test_a_question_too_long_for_the_limit_stops_nobody_and_names_the_options(endpoint):
    said = "'max_tokens' is too large: 1024. The context has 2048 tokens, and the request 1500."
    endpoint.answer = lambda number, body: endpoint.failure(400, said) if number == 1 else endpoint.completion("[[A]]")
    verdicts = dict(judge_at(endpoint, concurrency=1).compare(pairs(3)))
    assert [verdicts[i].value for i in range(3)] == [None, 1, 1]
    assert verdicts[0].flaw == f"no answer: 400: {said} (see the judge's options limit and max_tokens)"


def test_a_question_that_fails_now_and_then_stops_nobody(endpoint):
    refused = [f"question {i}" for i in range(0, 30, 3)]

    def answer(number, body):
        asked = body["messages"][-1]["content"]
        return (
            endpoint.failure(400, "too long")
            if any(f"{q}\n" in asked for q in refused)
            else endpoint.completion("[[A]]")
        )

    endpoint.answer = answer
    verdicts = dict(judge_at(endpoint, concurrency=1).compare(pairs(30)))
    assert [i for i in range(30) if verdicts[i].value is None] == list(range(0, 30, 3))
    assert len(refused) > FAILURES
    assert verdicts[0].flaw == "no answer: 400: too long"
    assert verdicts[0].used == {"requests": 1}  # what the endpoint refuses is not asked again


# ---- an endpoint that is not there -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "refuses the key (401: no). Set OPENAI_API_KEY"), (403, "Set OPENAI_API_KEY"), (404, "most end in /v1")],
)
def test_a_refusal_stops_at_once_with_the_remedy(endpoint, status, remedy):
    endpoint.answer = lambda number, body: endpoint.failure(status)
    with pytest.raises(DualHeadError) as refused:
        list(judge_at(endpoint, concurrency=2).compare(pairs(50)))
    assert remedy in str(refused.value)
    assert "it goes on" in str(refused.value)
    assert len(endpoint.bodies) < 10


@pytest.mark.parametrize(
    ("limit", "said", "remedy"),
    [
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "--judge_option limit=max_completion_tokens, or limit=none",
        ),
        (
            "max_completion_tokens",
            "Unrecognized request argument supplied: max_completion_tokens",
            "--judge_option limit=max_tokens, or limit=none",
        ),
    ],
)
def test_an_endpoint_that_knows_the_limit_by_another_name_stops_at_once(endpoint, limit, said, remedy):
    endpoint.answer = lambda number, body: endpoint.failure(400, said)
    with pytest.raises(DualHeadError) as refused:
        list(judge_at(endpoint, concurrency=2, limit=limit).compare(pairs(50)))
    assert f"does not take {limit} for 'tiny' (400: {said}" in str(refused.value)
    assert remedy in str(refused.value)
    assert len(endpoint.bodies) < 10


def test_an_account_without_credit_stops_at_once(endpoint):
    spent = '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    endpoint.answer = lambda number, body: (429, {"retry-after-ms": "1"}, spent)
    with pytest.raises(DualHeadError, match="no credit left"):
        list(judge_at(endpoint, concurrency=1, max_retries=1).compare(pairs(50)))
    assert len(endpoint.bodies) < 6


def test_an_address_where_nobody_answers_is_named(endpoint):
    endpoint.close()
    with pytest.raises(DualHeadError, match=f"Nothing answers at {endpoint.url} .*Start the endpoint"):
        list(judge_at(endpoint, max_retries=0).compare(pairs(3)))


def until_it_stops(judge, comparisons):
    """The verdicts that came, and what it said when it stopped."""
    verdicts, run = [], judge.compare(comparisons)
    while True:
        try:
            verdicts.append(next(run))
        except DualHeadError as stopped:
            return verdicts, str(stopped)
        except StopIteration:
            pytest.fail("it did not stop")


def test_many_failures_in_a_row_are_an_endpoint_that_is_down(endpoint):
    endpoint.answer = lambda number, body: (
        endpoint.completion("[[A]]") if number <= 5 else endpoint.failure(503, "busy")
    )
    verdicts, said = until_it_stops(judge_at(endpoint, concurrency=1, max_retries=0), pairs(100))
    assert f"{FAILURES} requests in a row" in said
    assert "503: busy" in said
    assert "it goes on" in said
    assert [verdict.value for _, verdict in verdicts][:14] == [1] * 5 + [None] * (len(verdicts[:14]) - 5)
    assert len(endpoint.bodies) < 20


def test_verdicts_before_a_stop_are_yielded(endpoint):
    endpoint.answer = lambda number, body: endpoint.completion("[[A]]") if number <= 5 else endpoint.failure(401)
    verdicts, said = until_it_stops(judge_at(endpoint, concurrency=1), pairs(20))
    assert "refuses the key" in said
    assert [(index, verdict.value) for index, verdict in verdicts] == [(i, 1) for i in range(5)]


# ---- whole runs --------------------------------------------------------------------------------------------


def answers(text, count=4):
    return {f"q{i}": Answer(question=f"q{i}", replies=(text,)) for i in range(count)}


QUESTIONS = [Question(f"q{i}", f"question {i}") for i in range(4)]


def test_a_judge_that_always_prefers_the_first_answer_makes_ties_and_is_found_out(endpoint):
    outcomes = judge_pairs(judge_at(endpoint), QUESTIONS, answers("far"), answers("near"))
    assert [(o.result, o.preference, o.orders, o.inconsistent) for o in outcomes] == [("tie", 0.5, (1, 0), True)] * 4
    assert len(endpoint.bodies) == 8


def test_a_second_run_asks_for_nothing_that_was_answered(endpoint, tmp_path):
    bad = ["question 1", "question 2"]

    def answer(number, body):
        asked = body["messages"][-1]["content"]
        if bad[0] in asked:
            return endpoint.completion("who knows")  # it would say so again
        return endpoint.failure(400) if bad[1] in asked else endpoint.completion("[[C]]")

    endpoint.answer = answer
    first = judge_pairs(judge_at(endpoint), QUESTIONS, answers("far"), answers("near"), folder=tmp_path)
    assert [outcome.result for outcome in first] == ["tie", "unparsable", "unparsable", "tie"]
    assert len(endpoint.bodies) == 8
    endpoint.answer = lambda number, body: endpoint.completion("[[C]]")
    second = judge_pairs(judge_at(endpoint), QUESTIONS, answers("far"), answers("near"), folder=tmp_path)
    assert [outcome.result for outcome in second] == ["tie", "unparsable", "tie", "tie"]
    assert [outcome.kept for outcome in second] == [2, 2, 0, 2]
    assert len(endpoint.bodies) == 10  # only what had no answer was asked for again
    judge_pairs(judge_at(endpoint), QUESTIONS, answers("far"), answers("near"), folder=tmp_path)
    assert len(endpoint.bodies) == 10
    judge_pairs(judge_at(endpoint, template="scores-v1"), QUESTIONS, answers("far"), answers("near"), folder=tmp_path)
    assert len(endpoint.bodies) == 18  # another prompt is another judge


def test_a_report_says_how_many_requests_were_made_grades_and_systems_that_agree_included(endpoint, tmp_path):
    endpoint.answer = lambda number, body: endpoint.completion("[[A]]" if "Assistant B" in str(body) else "[[7]]")
    questions = [Question(str(i), f"question {i}", (f"and {i}",)) for i in range(4)]
    rows = [{"question_id": int(q.id), "category": "writing", "turns": q.asked} for q in questions]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, said in (("base", "near"), ("one", "far"), ("same", "far"), ("other", "here")):
        own = {q.id: Answer(question=q.id, replies=(said, "yes")) for q in questions}
        load_benchmark("mt_bench").write(tmp_path, name, questions, own)
    options = EvaluationOptions(
        benchmark="mt_bench",
        source=str(tmp_path / "question.jsonl"),
        models=tuple(f"{name}={tmp_path / 'mt_bench' / name}.jsonl" for name in ("base", "one", "same", "other")),
        judge=f"openai:tiny@{endpoint.url}",
        skip_measures=True,
    )
    reports = [evaluate(options, tmp_path / "out", Console(quiet=True)) for _ in range(2)]
    # Both orders of two pairs that differ, and three grades of either turn.
    assert len(endpoint.bodies) == 4 * 2 * 2 + 4 * 3 * 2
    for report in reports:
        used = report["judge"]["used"]
        assert (used["requests"], used["input_tokens"]) == (len(endpoint.bodies), 10 * len(endpoint.bodies))


def test_an_answer_of_two_turns_is_graded_turn_by_turn(endpoint, tmp_path):
    endpoint.answer = lambda number, body: endpoint.completion("[[3]]" if "and 1" in str(body) else "[[8]]")
    question = Question("1", "question 1", ("and 1",), "math", references=("first", "second"))
    given = {"1": Answer(question="1", replies=("here", "there"))}
    (graded,) = grade_all(judge_at(endpoint), [question], given, folder=tmp_path)
    assert (graded.turns, graded.grade, graded.used["requests"]) == ((8, 3), 5.5, 2)
    first, second = sorted((str(body["messages"]) for body in endpoint.bodies), key=len)
    assert "there" not in first
    assert "second" not in first
    assert "there" in second
    assert grade_all(judge_at(endpoint), [question], given, folder=tmp_path)[0].kept == 2
    table = tables(load_benchmark("mt_bench"), [SimpleNamespace(name="one")], [question], {"one": [graded]})[0]
    assert (table["columns"], table["rows"]) == (["system", "turn 1", "turn 2"], [["one", "8.00", "3.00"]])


def test_a_turn_without_a_grade_leaves_the_answer_without_one(endpoint):
    endpoint.answer = lambda number, body: endpoint.completion("who knows" if "and 1" in str(body) else "[[8]]")
    question = Question("1", "question 1", ("and 1",))
    (graded,) = grade_all(judge_at(endpoint), [question], {"1": Answer(question="1", replies=("here", "there"))})
    assert (graded.turns, graded.grade) == ((8, None), None)
    assert "unparsable" in graded.flaw


# ---- what cannot be asked ----------------------------------------------------------------------------------


def test_openais_own_endpoint_needs_a_key(endpoint):
    with pytest.raises(DualHeadError, match="set OPENAI_API_KEY"):
        load_judge("openai:gpt")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"timeout": 0.0}, "above 0"),
        ({"requests_per_minute": -1.0}, "above 0"),
        ({"concurency": 2}, "Did you mean 'concurrency'?"),
        ({"limit": "max_token"}, "must be one of 'max_tokens', 'max_completion_tokens', 'none'"),
        ({"template": "alpacca"}, "Did you mean 'alpaca'?"),
    ],
)
def test_impossible_options_are_refused(endpoint, options, remedy):
    with pytest.raises(DualHeadError) as refused:
        judge_at(endpoint, **options)
    assert remedy in str(refused.value)


def test_no_request_leaves_for_a_question_without_a_template(endpoint):
    two = Question("two", "first", follow_ups=("second",))
    with pytest.raises(DualHeadError, match="'alpaca' have none of kind pairwise for question 'two'"):
        list(judge_at(endpoint, template="alpaca").compare([PAIR, Comparison(two, ("a", "b"), ("c", "d"))]))
    with pytest.raises(DualHeadError, match="have none of kind single"):
        list(judge_at(endpoint, template="alpaca").grade([(QUESTION, ("far",))]))
    assert not endpoint.bodies


def test_without_the_client_the_line_that_installs_it_is_told(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(DualHeadError, match=r"pip install 'dual-head\[judge\]'"):
        judge_at(endpoint)
