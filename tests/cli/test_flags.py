"""A YAML file of options, which may be somebody else's, runs no code that nobody allowed."""

import pytest

from dual_head.cli import main
from dual_head.cli.classify import train as classify
from dual_head.options.config_file import is_code

COMMANDS = {
    "train": ["train", "dual_head"],
    "classify train": ["classify", "train"],
    "classify compare": ["classify", "compare"],
    "classify evaluate": ["classify", "evaluate"],
}


@pytest.mark.parametrize("value", ["true", "yes", "'true'", "1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_config_does_not_have_a_models_code_run(tmp_path, monkeypatch, capsys, command, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(f"trust_remote_code: {value}\n")
    assert main([*COMMANDS[command], "--config", "config.yaml"]) == 2
    said = capsys.readouterr().err
    assert "'config.yaml' would run code here, by 'trust_remote_code: " in said
    assert "Read that code, and add --allow_code on the command line" in said


@pytest.mark.parametrize("section", ["model", "training"])
def test_a_section_of_a_config_does_not_either(tmp_path, capsys, section):
    (tmp_path / "config.yaml").write_text(f"{section}: {{trust_remote_code: true, allow_code: true}}\n")
    assert main(["classify", "train", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "would run code here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "more", "trusted"),
    [
        ("trust_remote_code: true", ["--allow_code"], True),
        ("trust_remote_code: false", [], False),
        ("max_steps: 1", ["--trust_remote_code", "true"], True),  # said by whoever runs the command
        ("max_steps: 1", ["--allow_code"], False),
    ],
)
def test_a_config_has_code_run_that_is_allowed(tmp_path, monkeypatch, config, more, trusted):
    (tmp_path / "config.yaml").write_text(config + "\n")
    runs = []
    monkeypatch.setattr("dual_head.train.run.train_guide", lambda *given: runs.append(given[1].trust_remote_code))
    monkeypatch.setattr(classify, "train_classifier", lambda options, args: runs.append(options.trust_remote_code))
    said = ["--config", str(tmp_path / "config.yaml"), "--model_name_or_path", "org/m", "--dataset_name", "org/d"]
    said += ["--output_dir", str(tmp_path / "out"), *more]
    assert main(["train", "dual_head", *said]) == 0
    assert main(["classify", "train", *said]) == 0
    assert runs == [trusted, trusted]


def test_what_runs_code_is_a_function_by_its_name_and_never_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge:v2").mkdir()
    code = [("judge", "rule:m:f"), ("reward", "m:f"), ("trust_remote_code", "True"), ("allow_code", "true")]
    data = [("judge", "rule"), ("judge", "rule:longer"), ("judge", "reward:judge:v2"), ("judge", "openai:m@http://h:1")]
    data += [("reward", "judge:v2"), ("reward", "out/judge"), ("trust_remote_code", "False"), ("source", "m:f")]
    assert [is_code(*option) for option in code] == [True] * 4
    assert [is_code(*option) for option in data] == [False] * 8
