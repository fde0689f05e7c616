"""Whatever a server sends ends soon, as a flaw of one verdict or as one paragraph, and tells nobody a secret."""

import gzip
import itertools
import json
import time

import pytest

from dual_head import DualHeadError
from dual_head.cli import main
from dual_head.evaluate import Answer, Comparison, Question
from dual_head.evaluate.endpoints.connection import LARGEST, parted
from dual_head.evaluate.judges import load_judge
from dual_head.evaluate.judges.verdicts import FILE, judge_pairs

PAIR = Comparison(Question("q", "How far is the moon?"), ("far",), ("near",))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
KEY = "a-key-of-our-own-1234"


def whole(body, *, status=b"200 OK", headers=b""):
    """One HTTP reply."""
    length = b"Content-Length: %d\r\nContent-Type: application/json\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\n" + length + headers + b"\r\n" + body


def asked(server, **options):
    """The one verdict, and how many seconds it took."""
    begin = time.monotonic()
    judge = load_judge(f"openai:tiny@{server.url}", api_key=KEY, **{"max_retries": 0, "timeout": 5.0, **options})
    ((_, verdict),) = judge.compare([PAIR])
    return verdict, time.monotonic() - begin


SLOW = {
    "the body": HEAD + b"Content-Length: 1000000\r\n\r\n",
    "the headers": HEAD + b"X-Long: ",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("what", SLOW)
def test_a_reply_that_never_ends_is_given_up_in_time_though_every_byte_comes_quickly(raw_server, what):
    raw_server.answer = lambda: raw_server.drip(b"1\r\nx\r\n" if what == "chunks" else b"x", first=SLOW[what])
    verdict, seconds = asked(raw_server, timeout=0.3)
    assert (verdict.value, verdict.flaw) == (None, "no answer: no whole reply came within 0.3 s")
    assert 0.3 <= seconds < 2


def test_a_server_that_says_go_on_for_ever_is_given_up_in_time(raw_server):
    raw_server.answer = lambda: raw_server.drip(b"HTTP/1.1 100 Continue\r\n\r\n")
    verdict, seconds = asked(raw_server, timeout=0.3)
    assert verdict.flaw == "no answer: no whole reply came within 0.3 s"
    assert seconds < 2


def test_a_slow_reply_is_asked_for_again_as_any_timeout(raw_server):
    replies = [raw_server.drip(b"x", first=SLOW["the body"]), [whole(completion("[[A]]"))]]
    raw_server.answer = lambda: replies[raw_server.requests - 1]
    verdict, _ = asked(raw_server, timeout=0.3, max_retries=1)
    assert (verdict.value, verdict.used["requests"]) == (1, 2)


def completion(said):
    return json.dumps({"choices": [{"message": {"content": said}}], "usage": None}).encode()


MANY = b'{"choices": "' + b"x" * 65536
BOMB = gzip.compress(b"[" * (LARGEST + 1))


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"500 Oops"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_without_limit_is_cut_off(raw_server, status, packed):
    endless = itertools.chain([b"HTTP/1.1 " + status + b"\r\n\r\n"], itertools.repeat(MANY))
    bomb = [whole(BOMB, status=status, headers=b"Content-Encoding: gzip\r\n")]
    raw_server.answer = lambda: bomb if packed else endless
    verdict, seconds = asked(raw_server)
    assert verdict.flaw == "no answer: the reply has more than 4,194,304 bytes"
    assert seconds < 3


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"[" * 1_000_000, b""),
        (b'{"choices": ' * 100_000, b""),
        (b'{"a":' * 900 + b"1" + b"}" * 900, b""),
        (b'{"choices": [' + b"9" * 5000 + b"]}", b""),
        (b'{"error": {"message": "\\ud83d \\u001b[2J"}}', b""),
        (b"\xff\xfe\x00", b""),
        (b"not packed", b"Content-Encoding: gzip\r\n"),
        (b'{"choices": []}', b"Content-Type: application/json; charset=zlib\r\n"),
        (b"\x80 no", b"Content-Type: text/html; charset=hex\r\n"),
        (b"", b""),
    ],
)
def test_what_cannot_be_read_is_a_flaw(raw_server, status, body, headers):
    raw_server.answer = lambda: [whole(body, status=status, headers=headers)]
    verdict, seconds = asked(raw_server)
    assert verdict.value is None
    assert verdict.flaw.startswith("no answer: ")
    assert len(verdict.flaw) < 300
    verdict.flaw.encode()  # it can be written
    assert seconds < 3


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"220 mail.example ESMTP\r\n",
        b"\x00" * 70_000,
        HEAD + b"Content-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 999999\r\n",
    ],
)
def test_what_is_no_reply_at_all_is_one_paragraph(raw_server, sent):
    raw_server.answer = lambda: [sent]
    with pytest.raises(DualHeadError, match=f"Nothing answers at {raw_server.url}") as refused:
        asked(raw_server)
    assert "\n" not in str(refused.value)


def test_numbers_beyond_all_measure_count_for_nothing(raw_server):
    usage = b'{"prompt_tokens": 1e999, "completion_tokens": ' + b"9" * 400 + b"}"
    body = b'{"choices": [{"message": {"content": "[[A]]"}}], "usage": ' + usage + b"}"
    raw_server.answer = lambda: [whole(body)]
    verdict, _ = asked(raw_server, input_price=1.0)
    assert verdict.value == 1
    assert verdict.used == {"requests": 1, "input_tokens": 0, "output_tokens": 0, "cost": 0}


def test_verdicts_that_contradict_each_other_a_million_times_are_named_by_three(raw_server):
    said = " ".join(f"[[{i}]]" for i in range(200_000))
    raw_server.answer = lambda: [whole(completion(said))]
    judge = load_judge(f"openai:tiny@{raw_server.url}")
    ((_, verdict),) = judge.grade([(PAIR.question, ("far",))])
    assert verdict.flaw == "unparsable: contradicting verdicts [[0]], [[1]], [[10]]"


@pytest.mark.parametrize("status", [b"301 Moved", b"307 Temporary", b"308 Permanent"])
def test_a_redirection_is_not_followed_and_the_other_address_named(raw_server, endpoint, status):
    where = endpoint.url.replace("://", "://bob:hunter2@").encode()
    raw_server.answer = lambda: [whole(b"", status=status, headers=b"Location: " + where + b"/chat\r\n")]
    with pytest.raises(DualHeadError) as refused:
        asked(raw_server)
    there = endpoint.url.replace("://", "://***@")
    assert f"redirects to {there}/chat, and redirections are not followed" in str(refused.value)
    assert not endpoint.bodies


def test_a_server_that_says_come_back_in_a_year_is_not_waited_for(raw_server):
    raw_server.answer = lambda: [whole(b"{}", status=b"429 Later", headers=b"Retry-After: 31536000\r\n")]
    verdict, seconds = asked(raw_server, max_retries=3)
    assert verdict.flaw.startswith("no answer: 429")
    assert seconds < 3


# ---- secrets -----------------------------------------------------------------------------------------------


def test_a_user_and_password_in_the_address_are_sent_and_shown_nowhere(endpoint):
    endpoint.answer = lambda number, body: endpoint.failure(401, "no entry for hunter2/2 or sk-0123456789")
    address = endpoint.url.replace("://", "://bob:hunter2%2F2@")
    judge = load_judge(f"openai:tiny@{address}")
    with pytest.raises(DualHeadError) as refused:
        list(judge.compare([PAIR]))
    assert endpoint.headers[0]["authorization"] == "Basic Ym9iOmh1bnRlcjIvMg=="  # bob:hunter2/2
    assert f"{endpoint.url} refuses the key (401: no entry for *** or ***)" in str(refused.value)
    assert judge.identity == load_judge(f"openai:tiny@{endpoint.url}").identity  # whoever asks hears the same
    assert parted("http://h:1/v1", "judge") == ("http://h:1/v1", None)


def test_a_key_that_the_server_says_back_is_kept_in_no_file(endpoint, tmp_path):
    bad = "question 1"

    def answer(number, body):
        if bad in body["messages"][-1]["content"]:
            return endpoint.failure(400, f"Incorrect API key provided: {KEY}")
        return endpoint.completion(f"You are {KEY}, and your password: is dull. [[C]]")

    endpoint.answer = answer
    questions = [Question(f"q{i}", f"question {i}") for i in range(2)]
    far, near = ({q.id: Answer(question=q.id, replies=(said,)) for q in questions} for said in ("far", "near"))
    judge = load_judge(f"openai:tiny@{endpoint.url}", api_key=KEY)
    outcomes = judge_pairs(judge, questions, far, near, folder=tmp_path)
    assert outcomes[0].said == ("You are ***, and your password: is dull. [[C]]",) * 2
    assert outcomes[1].flaws == ("no answer: 400: Incorrect API key provided: ***",) * 2
    assert KEY not in (tmp_path / FILE).read_text()


@pytest.mark.parametrize("address", ["http://bob:hun/ter@127.0.0.1/v1", "http://", "http://h:port/v1", "http://[x/v1"])
def test_an_address_that_cannot_be_read_is_refused_without_showing_it(address):
    pytest.importorskip("openai")
    with pytest.raises(DualHeadError, match=r"The judge's address cannot be read\. Write it as http") as refused:
        load_judge(f"openai:tiny@{address}")
    assert "bob" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(endpoint, key):
    with pytest.raises(DualHeadError, match="characters that no key has") as refused:
        load_judge(f"openai:tiny@{endpoint.url}", api_key=key)
    assert key not in str(refused.value)


def test_an_evaluation_leaves_neither_key_nor_password_in_any_file_nor_on_the_screen(
    endpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_API_KEY", "of-the-environment-77")

    def answer(number, body):
        asked = body["messages"][-1]["content"]
        if "question 1" in asked:
            return endpoint.failure(400, f"Key {KEY} of bob:hunter2, and of-the-environment-77, is refused")
        return endpoint.completion(f"\x1b[2JI know {KEY}. [[A]]" if "question 2" in asked else "[[A]]")

    endpoint.answer = answer
    prompts = [f"question {i}" for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    for name in ("far", "near"):
        rows = [{"instruction": prompt, "output": name, "generator": name} for prompt in prompts]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    output = tmp_path / "out"
    address = endpoint.url.replace("://", "://bob:hunter2@")
    arguments = ["eval", "prompts", "--source", str(tmp_path / "prompts.jsonl"), "--output_dir", str(output)]
    arguments += ["--models", f"a={tmp_path}/far.json,b={tmp_path}/near.json", "--skip_measures"]
    arguments += ["--judge", f"openai:tiny@{address}", "--judge_option", f"api_key={KEY}"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    written = {file.relative_to(output): file.read_text() for file in output.rglob("*") if file.is_file()}
    assert {"report.json", "report.md", "report.html"} <= set(map(str, written))
    for secret in (KEY, "hunter2", "of-the-environment-77"):
        for where, text in {**written, "out": shown.out, "err": shown.err}.items():
            assert secret not in text, where
    report = json.loads((output / "report.json").read_text())
    assert f"openai:tiny@{endpoint.url.replace('://', '://***@')}" in report["command"]
    assert "'api_key=***'" in report["command"]
    assert any("Key *** of bob:***, and ***, is refused" in warning for warning in report["warnings"])
    assert "\x1b" not in shown.out
