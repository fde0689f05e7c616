"""Keys, tokens and passwords are masked wherever they stand, and nothing else is."""

import shlex
import time

import pytest

from dual_head.console.secrets import command_line, is_secret, masked, masked_values, secret_values, without


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "--api_key", "hub_token", "push_to_hub_token", "token", "HF_TOKEN", "password", "db.passwd"),
        *("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "client_secret", "Authorization", "apikey", "api-key"),
        "EndpointOptions.api_key",
    ],
)
def test_a_secret_is_known_by_its_name(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "max_new_tokens", "batch_tokens", "tokenizer", "tokenizer_name", "pad_token", "eos_token"),
        *("key", "token_file", "secretary", "max_token_length", "keyword", "passwords_file", "special_tokens_map"),
    ],
)
def test_what_only_sounds_like_a_secret_is_none(name):
    assert not is_secret(name)
    assert masked(f"--{name}=value {name}: value") == f"--{name}=value {name}: value"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://bob:hunter2@h:1/v1", "http://***@h:1/v1"),
        ("openai:m@https://token@h/v1", "openai:m@https://***@h/v1"),
        ("http://a:p@ss@h/x", "http://***@h/x"),
        ("http://h/v1?api-key=abc&n=3&key=4#e", "http://h/v1?api-key=***&n=3&key=***#e"),
        ("guided=out/hh@1.5 me@example.org", "guided=out/hh@1.5 me@example.org"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic Ym9iOmh1bnRlcg=='}", "{'Authorization': 'Basic ***'}"),
        ('{"api_key": "abc", "n": 1, "token": "d e"}', '{"api_key": "***", "n": 1, "token": "*** e"}'),
        ("Incorrect API key: abc1. You can", "Incorrect API key: *** You can"),
        ("key sk-abcdEFGH-1234_5 of sk-ab*******yz", "key *** of ***"),
        ("hf_abcdefghijKLMNOP12345 and hf_tokenizer_of_a_model", "*** and hf_tokenizer_of_a_model"),
        ("task-specific risk-averse words", "task-specific risk-averse words"),
        ("no token: a and b", "no token: a and b"),
    ],
)
def test_a_secret_is_masked_by_its_place_or_its_look(text, shown):
    assert masked(text) == shown


def test_secrets_of_the_environment_and_given_ones_are_masked_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "plainword42")
    monkeypatch.setenv("OTHER_TOKEN", "short")  # five letters stand in many words
    assert masked("they said plainword42shortly to me, hunter2", "hunter2") == "they said ***shortly to me, ***"
    assert without("plainword42, hunter2, password: x", "hunter2") == "plainword42, ***, password: x"
    assert without("abcdefgh abcdef", "abcdef", "abcdefgh", "") == "*** ***"


def test_a_command_line_is_written_without_its_secrets_and_is_still_one():
    words = [
        "dual-head",
        "eval",
        "hh",
        "--judge",
        "openai:m@http://bob:hunter2@h/v1",
        "--judge_option",
        "api_key=k e y",
    ]
    words += [
        "--judge_option=password=abc",
        "--hub_token",
        "zyx",
        "--max_tokens",
        "5",
        "--judge_option",
        "max_tokens=7",
    ]
    words += ["--judge_option", "{'api_key': 'inside'}", "--push_to_hub_token=qq", "--note", "bob's is hunter2"]
    line = command_line(*words)
    for secret in ("hunter2", "k e y", "abc", "zyx", "inside", "qq"):
        assert secret not in line
    said = shlex.split(line)
    assert len(said) == len(words)
    assert said[:5] == ["dual-head", "eval", "hh", "--judge", "openai:m@http://***@h/v1"]
    assert said[5:10] == ["--judge_option", "api_key=***", "--judge_option=password=***", "--hub_token", "***"]
    assert said[10:14] == ["--max_tokens", "5", "--judge_option", "max_tokens=7"]
    assert {"k e y", "abc", "zyx", "qq", "bob:hunter2", "hunter2"} <= set(secret_values(words))


def test_a_flag_without_its_value_takes_no_other_flags_name():
    assert command_line("dual-head", "train", "--hub_token", "--seed", "1") == "dual-head train --hub_token --seed 1"


def test_secrets_among_nested_values_are_masked_and_all_else_is_kept():
    values = {"hub_token": "abc", "seeds": [0, 1.5, None], "evaluate": {"judge_option": ["api_key=x", "timeout=3"]}}
    shown = {"hub_token": "***", "seeds": [0, 1.5, None], "evaluate": {"judge_option": ["api_key=***", "timeout=3"]}}
    assert masked_values(values) == shown
    assert masked_values({"password": 1234, "token": None}) == {"password": "***", "token": None}


@pytest.mark.parametrize(
    "text", ["a_" * 50_000, "api_key" * 20_000, "://" * 50_000, "sk-" * 50_000, "eyJ" + "a" * 50_000]
)
def test_masking_a_long_text_takes_no_time(text):
    begin = time.process_time()
    masked(text)
    assert time.process_time() - begin < 2
