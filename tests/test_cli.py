"""The command line: what it prints, and that bad input is one paragraph and exit code 2."""

import contextlib
import errno
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dual_head.cli import COMMANDS, main
from dual_head.methods import method_names


@pytest.fixture(scope="module")
def guides(backbone_folder, pairs_file, tmp_path_factory):
    """A trained checkpoint, made by the command itself."""
    folder = tmp_path_factory.mktemp("guides") / "out"
    assert main(train(backbone_folder, pairs_file, folder)) == 0
    return folder


def train(backbone, pairs, output, *more) -> list[str]:
    given = ["--model_name_or_path", backbone, "--dataset_name", pairs, "--output_dir", output, "--max_steps", "3"]
    return [
        "train",
        "dual_head",
        *map(str, given),
        "--learning_rate",
        "0.05",
        "--disable_tqdm",
        "true",
        *map(str, more),
    ]


def refused(capsys, *arguments) -> str:
    """Run a command that must be refused, and return what it said."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("dual-head: ")
    return said


HELP = """
import contextlib, sys
from dual_head.cli import main
for command in [[], *([name] for name in sys.argv[1:])]:
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
sys.exit("torch" in sys.modules)
"""


def test_help_lists_every_command_and_does_not_import_torch():
    commands = [name for name in COMMANDS if name != "cache"]  # its options are those of a method's guide
    done = subprocess.run([sys.executable, "-c", HELP, *commands], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [["train"], ["train", "dual_head"], ["generate"], ["inspect"], ["demo"]])
def test_every_command_has_help_that_fits_the_screen(command, capsys):
    with contextlib.suppress(SystemExit):  # as argparse ends after its help
        assert main([*command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "usage: dual-head" in said
    assert max(map(len, said.splitlines())) <= 110


def test_training_help_shows_our_options_and_every_training_argument_on_demand(capsys):
    with pytest.raises(SystemExit):
        main(["train", "dual_head", "--help"])
    brief = capsys.readouterr().out
    assert all(flag in brief for flag in ("--learning_rate", "--beta_r", "--guide.rank", "--dataset_name"))
    assert "--deepspeed" not in brief
    assert main(["train", "dual_head", "--help_all"]) == 0
    assert "--deepspeed" in capsys.readouterr().out


def test_generate_prints_text_for_a_prompt_a_file_and_standard_input(guides, tmp_path, capsys, monkeypatch):
    assert (
        main(["generate", str(guides), "--prompt", "once upon a time", "--alpha", "1.0", "--max_new_tokens", "5"]) == 0
    )
    streamed = capsys.readouterr().out.strip()
    assert streamed
    assert (
        main(
            [
                "generate",
                str(guides),
                "--prompt",
                "once upon a time",
                "--alpha",
                "1.0",
                "--max_new_tokens",
                "5",
                "--no_stream",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.split() == streamed.split()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ask0 ask1"}\nask2\n')
    out = tmp_path / "out.jsonl"
    assert (
        main(
            [
                "generate",
                str(guides),
                "--prompts_file",
                str(tmp_path / "prompts.jsonl"),
                "--alpha",
                "dual_head=0.5",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["ask0 ask1", "ask2"]


def test_a_row_is_added_behind_a_line_that_was_cut(guides, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text('{"prompt": "as')
    for _ in range(2):
        command = ["generate", str(guides), "--prompt", "ask0", "--max_new_tokens", "2", "--output", str(out)]
        assert main(command) == 0
    cut, *whole = out.read_text().splitlines()
    assert cut == '{"prompt": "as'
    assert [json.loads(line)["prompt"] for line in whole] == ["ask0", "ask0"]


def test_trace_shows_the_gate_of_every_token(guides, capsys):
    assert main(["generate", str(guides), "--prompt", "ask0", "--alpha", "1", "--max_new_tokens", "4", "--trace"]) == 0
    said = capsys.readouterr().out
    assert "log p base" in said
    assert "promoted" in said


def test_inspect_counts_what_is_there(guides, capsys):
    assert main(["inspect", str(guides), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    guide = described["guides"]["dual_head"]
    # difference: V x d, and the gate: q, k, v of d x 384, a vector of 384 and a bias
    vocabulary, width = described["backbone"]["vocab_size"], described["backbone"]["hidden_size"]
    expected = vocabulary * width + 3 * width * 384 + 384 + 1
    assert guide["trained"] == guide["stored"] == guide["executed"] == expected
    assert described["bytes"] == (guides / "model.safetensors").stat().st_size
    assert main(["inspect", str(guides)]) == 0
    assert "fingerprints" in capsys.readouterr().out


def test_a_yaml_config_gives_the_options_and_flags_override_it(backbone_folder, pairs_file, tmp_path):
    config = tmp_path / "config.yaml"
    values = {
        "method": "dual_head",
        "model_name_or_path": str(backbone_folder),
        "dataset_name": str(pairs_file),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "learning_rate": "1e-3",
        "disable_tqdm": True,
        "guide": {"rank": 4},
        "preference": {"beta": 0.5},
        "lambda_g": 0.02,
    }
    config.write_text(yaml.safe_dump(values))
    assert main(["train", "dual_head", "--config", str(config), "--beta_r", "0.25"]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["guide"]["rank"] == 4
    assert run["preference"]["beta"] == 0.25
    assert run["gate_entropy"]["weight"] == 0.02
    assert run["learning_rate"] == "0.001"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "dual_heed"], "Did you mean 'dual_head'?"),
        (["train", "dual_head", "--learning_rat", "1"], "Did you mean '--learning_rate'?"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_one(arguments, remedy, capsys):
    assert remedy in refused(capsys, *arguments)


def test_bad_training_input_is_refused_and_writes_no_guides(backbone_folder, pairs_file, tmp_path, capsys):
    out = tmp_path / "out"
    config = tmp_path / "config.yaml"
    config.write_text("guide: {ranks: 4}\n")
    cases = {
        "Did you mean 'guide.rank'?": train(backbone_folder, pairs_file, out, "--config", config),
        "must be one of 'attention', 'constant'": train(backbone_folder, pairs_file, out, "--gate", "atention"),
        "must be float": train(backbone_folder, pairs_file, out, "--beta_r", "strong"),
        "--held_out must be at least 0 and below 1": train(backbone_folder, pairs_file, out, "--held_out", "1.5"),
        "Unknown objective": None,
        "Give a folder": train(tmp_path, pairs_file, out, "--tokenizer_name", backbone_folder),
    }
    for remedy, arguments in cases.items():
        if arguments is not None:
            assert remedy in refused(capsys, *arguments)
    assert not (out / "model.safetensors").exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    backbone_folder, pairs_file, tmp_path, capsys
):
    (tmp_path / "file").write_text("in the way")
    said = refused(capsys, *train(backbone_folder, pairs_file, tmp_path / "file" / "out"))
    assert "Choose another output folder" in said


def test_a_data_file_with_broken_lines_trains_on_the_rest(backbone_folder, pairs_file, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "ask0\n' + pairs_file.read_text() + "not json\n")
    assert main(train(backbone_folder, broken, tmp_path / "out")) == 0
    assert "2 dropped: malformed line" in capsys.readouterr().out


def test_bad_generation_input_is_refused_with_the_remedy(guides, backbone_folder, tmp_path, capsys):
    said = {
        "The prompt is empty": ["--prompt", "  "],
        "alpha must be a number": ["--prompt", "ask0", "--alpha", "much"],
        "Did you mean 'dual_head'?": ["--prompt", "ask0", "--alpha", "dualhead=1"],
        "NaN or infinity": ["--prompt", "ask0", "--alpha", "nan"],
        "names a guide twice": ["--prompt", "ask0", "--alpha", "dual_head=1,dual_head=2"],
        "Shorten the prompt": ["--prompt", "ask0 " * 80],
        "none.txt': No such file or directory. Check the path.": ["--prompts_file", str(tmp_path / "none.txt")],
        "Cannot read the prompts": ["--prompts_file", str(tmp_path)],
    }
    for remedy, arguments in said.items():
        assert remedy in refused(capsys, "generate", guides, *arguments)
    assert "holds no config.json" in refused(capsys, "generate", tmp_path, "--prompt", "ask0")
    assert "not a checkpoint of guides" in refused(capsys, "inspect", tmp_path)


def test_there_is_a_method_for_the_paper():
    assert "dual_head" in method_names()


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_config_is_understood(file):
    from dual_head.cli import training
    from dual_head.cli.classify import train as classify
    from dual_head.methods import method

    if name := yaml.safe_load(file.read_text()).get("method"):
        parser = training.build_parser(method(name))
    else:
        parser = classify.build_parser()
    options, training, _ = parser.read(["--config", str(file), "--output_dir", "out"])
    assert options.dataset_name
    assert training.output_dir == "out"


def test_a_tracker_that_is_not_installed_is_named_with_its_install_line(backbone_folder, pairs_file, tmp_path, capsys):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    said = refused(capsys, *train(backbone_folder, pairs_file, tmp_path / "out", "--report_to", "wandb"))
    assert "pip install 'dual-head[wandb]'" in said


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # mlflow's own use of SQLAlchemy
def test_a_tracker_sees_one_run(backbone_folder, pairs_file, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "guides")
    monkeypatch.chdir(tmp_path)  # where artifacts would go
    more = ["--max_steps", "2", "--logging_steps", "1", "--report_to", "mlflow", "--eval_strategy", "no"]
    assert main(train(backbone_folder, pairs_file, tmp_path / "out", *more)) == 0
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("guides").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "preference")) == 2


def test_a_package_that_an_option_of_transformers_needs_is_named_in_one_line(monkeypatch, capsys):
    def run(_arguments):
        raise ImportError("`use_liger_kernel` needs liger-kernel. Please install it with `pip install liger-kernel`")

    monkeypatch.setattr("dual_head.cli.demo.run", run)
    assert main(["demo"]) == 2
    assert "not installed. `use_liger_kernel` needs" in capsys.readouterr().err


def test_an_import_that_fails_for_another_reason_is_not_hidden(monkeypatch):
    def run(_arguments):
        raise ImportError("cannot import name 'a' from 'b'")

    monkeypatch.setattr("dual_head.cli.demo.run", run)
    with pytest.raises(ImportError):
        main(["demo"])


def test_a_full_disk_is_one_paragraph_with_the_remedy(monkeypatch, capsys):
    def full(_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dual_head.cli.demo.run", full)
    assert "Free some space" in refused(capsys, "demo")


def test_a_config_may_be_given_with_an_equals_sign_and_may_name_every_option(backbone_folder, pairs_file, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("guide: {rank: 3}\npreference: {through: policy}\n")
    arguments = train(backbone_folder, pairs_file, tmp_path / "out", f"--config={config}")
    assert main(arguments) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["guide"]["rank"], run["preference"]["through"]) == (3, "policy")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("max_steps: [1, 2]", "'max_steps'"),
        ("quantization: 5bit", "must be one of none, 4bit, 8bit, int8"),
        ("learning_rate: fast", "'learning_rate'"),
    ],
)
def test_a_yaml_value_is_held_to_what_its_flag_accepts(line, remedy, backbone_folder, pairs_file, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(line + "\n")
    assert remedy in refused(capsys, *train(backbone_folder, pairs_file, tmp_path / "out", "--config", config))


@pytest.mark.parametrize(
    "more",
    [
        ["--beta_r", "nan"],
        ["--beta_r", "-1"],
        ["--lambda_r", "-1"],
        ["--max_pairs", "-1"],
        ["--dtype", "float31"],
        ["--per_device_train_batch_size", "0"],
        ["--learning_rate", "-1"],
        ["--seed", "-1"],
    ],
)
def test_numbers_that_make_no_sense_are_refused(more, backbone_folder, pairs_file, tmp_path, capsys):
    flag = more[0].removeprefix("--").removesuffix("_r").removesuffix("lambda") or "weight"
    said = refused(capsys, *train(backbone_folder, pairs_file, tmp_path / "out", *more))
    assert flag in said


def test_brackets_and_colons_in_prompts_and_replies_are_left_alone(guides, capsys):
    asked = ["--prompt", "[/INST] ask0", "--prompt", ":cat: [bold]ask1[/]"]
    assert main(["generate", str(guides), *asked, "--max_new_tokens", "2"]) == 0
    said = capsys.readouterr().out
    assert "[/INST] ask0" in said
    assert ":cat: [bold]ask1[/]" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--output", "a" * 300], "File name too long"),
        (["--prompt", "\udcff"], "is not UTF-8 text"),
        (["--num_beams", "9" * 30], "below 2^53"),
        (["--temperature", "nan"], "must be a finite number"),
        (["--temperature", "-1"], "must be at least 0"),
        (["--seed=--"], "expects a value"),
    ],
)
def test_what_no_computer_takes_is_refused_in_one_paragraph(guides, capsys, more, said):
    given = ["generate", str(guides), "--prompt", "ask0", "--max_new_tokens", "1", *more]
    try:
        code = main(given)
    except SystemExit as error:  # how argparse refuses
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err
