"""Every command takes --config: a key that it does not have is refused with the nearest, before anything is loaded."""

import pytest

from dual_head.cli import compose, eval, generate, main
from dual_head.cli.classify import predict

# An option of each, and that option mistyped.
COMMANDS = {
    "cache": ("pairs_per_shard", "pairs_per_shart"),
    "compose": ("sources", "souces"),
    "demo": ("steps", "stepps"),
    "eval": ("num_samples", "num_sampels"),
    "generate": ("top_p", "topp"),
    "inspect": ("against", "againts"),
    "merge": ("overwrite", "overwite"),
    "sweep": ("alphas", "alfas"),
    "train iav": ("max_length", "max_lenght"),
    "classify compare": ("controls", "contorls"),
    "classify evaluate": ("calibrate", "calibrat"),
    "classify export": ("onnx", "onx"),
    "classify lint": ("no_probe", "no_prob"),
    "classify predict": ("threshold", "treshold"),
    "classify rationales": ("attempts", "atempts"),
    "classify train": ("lora_r", "lora_rr"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_that_a_command_does_not_have_is_refused_with_the_nearest(command, tmp_path, capsys):
    name, typed = COMMANDS[command]
    (tmp_path / "options.yaml").write_text(f"{typed}: 1\n")
    assert main([*command.split(), "--config", str(tmp_path / "options.yaml")]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"Unknown key '{typed}' in" in shown
    assert f"Did you mean '{name}'?" in shown


def test_a_file_may_give_everything_that_a_command_needs(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "options.yaml"
    file.write_text(f"guides: {tmp_path}\nprompt: [a, b]\nmax_new_tokens: 7\ntrace: true\n")
    (options,) = generate.build_parser().read(["--config", str(file), "--prompt", "c"])
    assert (options.guides, options.prompt, options.max_new_tokens, options.trace) == (str(tmp_path), ["c"], 7, True)
    file.write_text("sources: [a=x, b=y]\noutput_dir: out\n")
    assert compose.build_parser().read(["--config", str(file)])[0].sources == ["a=x", "b=y"]
    file.write_text("benchmark: hh\nmodels: [a=x]\noutput_dir: out\nefficiency: [1, 4]\n")
    assert eval.build_parser().read(["--config", str(file)])[0].efficiency == "1,4"
    file.write_text("classifier: x\nthreshold: 0.25\n")
    assert predict.build_parser().read(["--config", str(file)])[0].threshold == 0.25
