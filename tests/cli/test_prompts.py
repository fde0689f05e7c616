"""Prompts come from flags, files and standard input, and each is text or a conversation by one rule."""

import io
import json

import pytest
from files import word_tokenizer

from dual_head.cli.prompts import PromptOptions, conversations, read_prompts, shown
from dual_head.errors import DualHeadError
from dual_head.options.flags import OptionParser

USER = {"role": "user", "content": "how"}
TALK = [USER, {"role": "assistant", "content": "so"}, {"role": "user", "content": "why"}]


def options(*arguments: object) -> PromptOptions:
    (options,) = OptionParser(PromptOptions, command="generate", description=None).read([*map(str, arguments)])
    return options


def read(tmp_path, text: str, *arguments: str, name: str = "prompts.txt") -> list:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_prompts(options("--prompts", tmp_path / name, *arguments))


def test_prompts_of_flags_come_before_those_of_a_file(tmp_path):
    assert read(tmp_path, "b\n\nc\r\n", "--prompt", "a") == ["a", "b", "c"]


def piped(monkeypatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


@pytest.mark.parametrize("text", [b"two\nlines\n", b"\xef\xbb\xbftwo\r\nlines\r\n"], ids=["plain", "of Windows"])
def test_standard_input_is_one_prompt_where_it_is_read(monkeypatch, text):
    piped(monkeypatch, text)
    assert read_prompts(options(), stdin=True) == ["two\nlines"]
    with pytest.raises(DualHeadError, match=r"Give one with --prompt, or a file with --prompts\."):
        read_prompts(options())


def test_standard_input_that_is_not_utf8_is_refused(monkeypatch):
    piped(monkeypatch, "caf\u00e9".encode("latin-1"))
    with pytest.raises(DualHeadError, match=r"on standard input: .*Give it as UTF-8 text\."):
        read_prompts(options(), stdin=True)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
@pytest.mark.parametrize("row", [{"prompt": TALK}, {"messages": TALK}, TALK], ids=["prompt", "messages", "a list"])
def test_a_line_of_messages_is_a_conversation(tmp_path, name, row):
    assert read(tmp_path, json.dumps(row) + "\n", name=name) == [TALK]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.json", json.dumps([{"prompt": "how"}, {"prompt": "why"}])),
        ("prompts.jsonl", '{"prompt": "how"}\n{"prompt": "why"}\n'),
        ("prompts.txt", "\ufeffhow\nwhy\n"),
        ("prompts", "how\nwhy"),
    ],
)
def test_files_of_every_kind_hold_the_same_prompts(tmp_path, name, text):
    assert read(tmp_path, text, name=name) == ["how", "why"]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts.json"])
@pytest.mark.parametrize("column", ["system", "system_prompt", "System"])
def test_a_system_message_in_a_column_of_its_own_is_asked(tmp_path, name, column):
    system = {"role": "system", "content": "Answer in French."}
    for row, turns in (({"prompt": "how"}, [USER]), ({"prompt": TALK}, TALK), ({"messages": TALK}, TALK)):
        assert read(tmp_path, json.dumps({**row, column: "Answer in French."}), name=name) == [[system, *turns]]
    assert read(tmp_path, json.dumps({"prompt": "how", column: None}), name=name) == ["how"]


def test_a_system_message_of_the_row_and_one_of_the_flag_are_not_mixed(tmp_path):
    args = options("--prompts", tmp_path / "prompts.jsonl", "--system", "be kind")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "how", "system": "be brief"}))
    with pytest.raises(DualHeadError, match="has a system message already"):
        conversations(read_prompts(args), args, word_tokenizer())


def test_a_line_in_brackets_that_is_no_conversation_is_a_text(tmp_path):
    lines = ["[INST] how [/INST]", "[1, 2]", "[]"]
    assert read(tmp_path, "\n".join(lines)) == lines


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ('{"prompt": "cut', "is not valid JSON; a row is"),
        ('{"question": "how"}', "has no prompt; a row is"),
        (
            '{"messages": [{"role": "narrator", "content": "a"}]}',
            "a message must have a role (system, user, assistant)",
        ),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "and a text as content"),
        ('{"messages": [{"role": "user", "content": "a", "tool_calls": []}]}', "a message has tool_calls"),
        (json.dumps(TALK[:2]), "ends with a message of the assistant"),
        ('{"prompt": "how", "context": "a", "input": "b"}', "not read here: context, input. Leave them out"),
        (json.dumps({"prompt": [{"role": "system", "content": "a"}, USER], "system": "b"}), "not read here: system"),
        ('{"prompt": "how", "system": "[{\\"role\\": \\"system\\"}]"}', "messages written as a text"),
        ('{"prompt": "how", "image": "a.png"}', "column 'image' holds an image"),
    ],
)
def test_a_line_that_holds_no_prompt_is_named_with_the_remedy(tmp_path, line, remedy):
    with pytest.raises(DualHeadError) as refusal:
        read(tmp_path, f"how\n{line}\n")
    assert remedy in str(refusal.value)
    assert "prompts.txt:2" in str(refusal.value)


def test_options_that_exclude_each_other_are_refused(tmp_path):
    for other in (["--system", "be kind"], ["--chat"]):
        with pytest.raises(DualHeadError, match=f"--raw continues a prompt as text, and {other[0]}"):
            read_prompts(options("--prompt", "how", "--raw", *other))
    for row in (TALK, {"prompt": "how", "system": "be kind"}):
        with pytest.raises(DualHeadError, match=r"prompts\.txt:1 is a conversation, and --raw continues texts"):
            read(tmp_path, json.dumps(row), "--raw")


@pytest.mark.parametrize(
    ("template", "arguments", "asks"),
    [
        (None, [], "how"),
        ("t", [], [USER]),
        ("t", ["--raw"], "how"),
        (None, ["--chat"], [USER]),
        (None, ["--system", "be kind"], [{"role": "system", "content": "be kind"}, USER]),
    ],
)
def test_what_a_prompt_asks_depends_on_the_template_and_the_flags(template, arguments, asks):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    args = options("--prompt", "how", *arguments)
    assert conversations(read_prompts(args), args, tokenizer) == [asks]


def test_a_conversation_is_shown_by_its_last_message():
    assert shown(TALK) == "why"
    assert shown("how") == "how"


def test_a_missing_file_of_prompts_is_refused_by_its_path(tmp_path):
    with pytest.raises(DualHeadError, match=r"No such file or directory\. Check the path\."):
        read_prompts(options("--prompts", tmp_path / "gone.txt"))
