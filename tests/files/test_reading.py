"""Whatever a reader raises is one error that names the file, what is wrong and the remedy."""

import errno
import json
import pickle
import re
import threading
import time

import pytest

from dual_head.errors import DualHeadError
from dual_head.files.reading import json_value, read_json, read_yaml, reading, time_limit, yaml_value


class Panic(BaseException):
    """How a library written in Rust fails: no Exception."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a wheel\nand more"), "a wheel."),
        (KeyError("kind"), "it lacks 'kind'."),
        (TypeError("no"), "TypeError: no."),
        (
            pickle.UnpicklingError("weights_only"),
            "it is a pickle of more than numbers, which could run code: give safetensors.",
        ),
        (EOFError(), "it ends too early."),
        (AssertionError(), "AssertionError."),
        (RecursionError("maximum"), "it is nested too deeply."),
        (MemoryError(), "it needs more memory than there is."),
        (OSError(errno.EIO, "Input/output error"), "Input/output error."),
        (Panic("out of range"), "out of range."),
    ],
)
def test_what_a_reader_raises_is_told_in_one_paragraph_with_the_remedy(error, said):
    with pytest.raises(DualHeadError) as refused, reading("Cannot read 'x'", "Copy it again."):
        raise error
    assert str(refused.value) == f"Cannot read 'x': {said} Copy it again."
    assert refused.value.__cause__ is error


def test_a_package_that_is_missing_is_no_fault_of_the_files(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    said = "Cannot load it: no package for attention. Install what is named, or leave out the option that needs it."
    with pytest.raises(DualHeadError, match=re.escape(said)), reading("Cannot load it", "Copy it again.", tmp_path):
        raise ImportError("no package for attention")


@pytest.mark.parametrize("error", [DualHeadError("mine"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_what_says_it_all_already_passes(error):
    with pytest.raises(type(error)) as raised, reading("Cannot read 'x'", "Copy it again."):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not whole JSON"),
        ('{"a": 1', "not whole JSON"),
        ("[1]", "not a JSON object"),
        ('"a"', "not a JSON object"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a":' * 200 + "1" + "}" * 200, "more than 100 levels"),
        ('{"a": ' + "9" * 10_000 + "}", "Exceeds the limit"),
        (r'{"a": "\ud800"}', "half a character"),
        (b'{"a": "\xe9"}', "not UTF-8 text"),
    ],
)
def test_json_that_is_damaged_or_hostile_is_refused_by_what_is_wrong(tmp_path, text, said):
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DualHeadError, match=rf"^Cannot read '.*config.json': .*{said}.* Copy it\.$"):
        read_json(file, "Copy it.")


def test_json_of_pairs_of_halves_is_read_and_a_file_that_is_not_there_is_named(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"a": "\U0001f600"}))
    assert read_json(file, "") == {"a": "\U0001f600"}
    with pytest.raises(DualHeadError, match=r"none.json': No such file or directory\. Copy it\."):
        read_json(tmp_path / "none.json", "Copy it.")
    with pytest.raises(ValueError, match="surrogates"):
        json_value(r'"\ud800"')


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "while parsing a flow sequence"),
        ("[" * 1000 + "]" * 1000, "nested too deeply"),
        ("a: &x [*x]", "more than 100 levels"),
        (BOMB, "more than 1,000,000 values"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
        (b"a: caf\xe9", "not UTF-8 text"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_damaged_or_hostile_is_refused_by_what_is_wrong(tmp_path, text, said):
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    started = time.perf_counter()
    with pytest.raises(DualHeadError, match=said) as refused:
        read_yaml(file, "Mend it.")
    assert str(refused.value).count("\n") == 0
    assert time.perf_counter() - started < 20


def test_yaml_with_aliases_is_read_as_it_is_meant():
    assert yaml_value("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}


def test_code_that_does_not_end_is_stopped_in_any_thread_and_what_ends_is_left_alone():
    def endless():
        try:
            with time_limit(0.1):
                while True:
                    pass
        except TimeoutError:
            stopped.append(threading.current_thread())

    stopped = []
    endless()
    other = threading.Thread(target=endless)
    other.start()
    other.join(20)
    assert stopped == [threading.current_thread(), other]
    with time_limit(0.05):
        pass
    end = time.perf_counter() + 0.15
    while time.perf_counter() < end:  # the limit of a block that is over stops nothing
        pass


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("config.json", b"[]", "it is not a JSON object"),
        ("tokenizer_config.json", b'{"cut', "it is not whole JSON"),
        ("tokenizer.json", b"\xff", "it is not UTF-8 text"),
        ("model-00002-of-00002.safetensors", b"", "Error while deserializing header: header too small"),
    ],
)
def test_of_a_model_that_cannot_be_loaded_the_damaged_file_is_named(name, data, reason, tmp_path):
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / name).write_bytes(data)
    expected = re.escape(f"Could not load it: its {name} is damaged ({reason}). Copy it again.")
    with pytest.raises(DualHeadError, match=f"^{expected}$"), reading("Could not load it", "Give another.", tmp_path):
        raise KeyError("layers")
    (tmp_path / name).unlink()
    with (
        pytest.raises(DualHeadError, match=r"it lacks 'layers'\. Give another\."),
        reading("No", "Give another.", tmp_path),
    ):
        raise KeyError("layers")
