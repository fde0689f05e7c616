"""Guides for vLLM, without vLLM: what is read of a folder, the command that starts its server, and its golden file."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from files import write_guides
from safetensors.torch import load_file

from dual_head import HiddenConfig, LinearConfig, MultilayerConfig, RewardHeadConfig
from dual_head.cli import main
from dual_head.cli import serve as command
from dual_head.errors import DualHeadError
from dual_head.serve import vllm
from dual_head.serve.vllm import GUIDES, OTHER_PRECISION, VllmServer, build_all, read_guides, vllm_command

TESTS = Path(__file__).parents[2] / "integrations" / "vllm" / "tests"


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory):
    kinds = {"gated": RewardHeadConfig(rank=4, num_heads=2, head_dim=8), "plain": HiddenConfig(rank=4)}
    return write_guides(tmp_path_factory.mktemp("guides"), backbone_folder, kinds)


@pytest.fixture
def python(tmp_path):
    """What answers as the interpreter of an environment with vLLM and the plugin would."""

    def write(answer="[true, true, true]"):
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\necho '{answer}'\n")
        file.chmod(0o755)
        return str(file)

    return write


def option(words, flag):
    return words[words.index(flag) + 1]


# ---- what is served --------------------------------------------------------------------------------------


def test_a_folder_is_read_with_its_guides_in_order_their_defaults_and_their_tensors(guides):
    served = read_guides(str(guides))
    assert list(served.entries) == ["gated", "plain"]
    assert served.alpha == {"gated": 1.0, "plain": 1.0}
    assert (served.fusion, served.architecture) == ("logits", "DualHeadLlamaForCausalLM")
    assert served.tensors().keys() == load_file(guides / "model.safetensors").keys()


def test_folders_side_by_side_are_read_under_their_names_at_a_strength_of_0(backbone_folder, tmp_path):
    for name in ("calm", "bold"):
        write_guides(tmp_path / name, backbone_folder, {"kind": LinearConfig(rank=2)})
    served = read_guides(str(tmp_path))
    assert served.alpha == {"bold": 0.0, "calm": 0.0}
    assert {key.split(".")[0] for key in served.tensors()} == {"bold", "calm"}


def test_a_place_without_guides_is_refused(backbone_folder, tmp_path):
    with pytest.raises(DualHeadError, match="not a checkpoint of guides"):
        read_guides(str(backbone_folder))
    with pytest.raises(DualHeadError, match="no such folder"):
        read_guides(str(tmp_path / "nowhere" / "else" / "at all"))


@pytest.mark.parametrize("kind", ["language_model", "reward_model"])
def test_a_guide_that_runs_a_model_is_refused_by_name_with_the_reason(kind, guides):
    entries = {**read_guides(str(guides)).entries}
    entries["plain"] = {**entries["plain"], "kind": kind}
    with pytest.raises(
        DualHeadError, match=f"The guide 'plain' of kind {kind} cannot be served by vLLM: it runs a model"
    ):
        build_all(entries)


def test_a_backbone_without_a_class_of_the_plugin_runs_by_vllms_transformers_backend(guides, monkeypatch):
    served = read_guides(str(guides))
    for architecture, family in {"GPT2LMHeadModel": "Transformers", "Gemma2ForCausalLM": "Gemma2"}.items():
        served.values["backbone_fingerprint"]["architecture"] = architecture
        assert served.architecture == f"DualHead{family}ForCausalLM"


def test_gemma_gives_no_inner_layers_in_vllms_own_class(backbone_folder, tmp_path):
    served = read_guides(str(write_guides(tmp_path / "g", backbone_folder, {"multi": MultilayerConfig(width=8)})))
    assert served.architecture == "DualHeadLlamaForCausalLM"
    served.values["backbone_fingerprint"]["architecture"] = "Gemma3ForCausalLM"
    assert served.architecture == "DualHeadTransformersForCausalLM"


# ---- the command -----------------------------------------------------------------------------------------


def test_the_command_starts_vllms_server_with_the_guides_in_it(guides, backbone_folder, python):
    words, environment = vllm_command(
        VllmServer(str(guides), "both", python(), api_key="secret", arguments=["--seed=1"])
    )
    assert words[:3] == [python(), "-m", "vllm.entrypoints.openai.api_server"]
    assert Path(option(words, "--model")) == Path(backbone_folder).resolve()
    assert json.loads(option(words, "--hf-overrides")) == {
        "architectures": ["DualHeadLlamaForCausalLM"],
        "dual_head_guides": str(guides.resolve()),
    }
    at = words.index("--served-model-name")
    assert words[at + 1 : at + 5] == ["both", "both:base", "both:gated", "both:plain"]
    assert option(words, "--middleware") == "dual_head_vllm.middleware.Alpha"
    assert words[-1] == "--seed=1"
    assert environment[GUIDES] == str(guides.resolve())
    assert environment["VLLM_API_KEY"] == "secret"
    assert not any("secret" in word for word in words)
    assert OTHER_PRECISION not in environment


def test_a_tokenizer_beside_the_guides_goes_before_the_backbones(guides, backbone_folder, python, tmp_path):
    words, _ = vllm_command(VllmServer(str(guides), "both", python()))
    beside = (guides / "tokenizer_config.json").is_file()
    assert option(words, "--tokenizer") == (str(guides) if beside else option(words, "--model"))
    words, _ = vllm_command(VllmServer(str(guides), "both", python(), tokenizer="another"))
    assert option(words, "--tokenizer") == "another"


@pytest.mark.parametrize("flag", ["--model", "--hf-overrides={}", "--hf_overrides", "--served-model-name"])
def test_options_of_vllm_that_follow_from_the_guides_are_refused(flag, guides, python):
    with pytest.raises(DualHeadError, match="follows from the guides"):
        vllm_command(VllmServer(str(guides), "both", python(), arguments=[flag, "x"]))


def test_an_environment_without_vllm_or_the_plugin_is_refused_with_the_lines_that_install_them(python, tmp_path):
    for answer, package in (("[false, true, true]", "vllm"), ("[true, true, false]", "dual-head-vllm")):
        with pytest.raises(DualHeadError, match=f"{package} is not installed for .*pip install --no-deps dual-head"):
            vllm.find_python(python(answer))
    with pytest.raises(DualHeadError, match="no Python that can be run"):
        vllm.find_python(str(tmp_path / "nothing"))
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(DualHeadError, match="vLLM is not installed here"):
            vllm.find_python(None)


# ---- dual-head serve -------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """The commands that this process would become."""
    calls = []
    monkeypatch.setattr(command.os, "execve", lambda file, words, environment: calls.append((words, environment)))
    return calls


def test_serve_becomes_vllms_server_and_hands_its_options_on(guides, python, started, capsys):
    flags = ["--context_length", "128", "--max_rows", "8", "--dtype", "float32", "--drain", "2.5", "--port", "0"]
    arguments = ["serve", str(guides), "--backend", "vllm", "--vllm_python", python(), *flags, "--other_precision"]
    main([*arguments, "--api_key", "secret", "--", "--tensor-parallel-size", "2"])
    ((words, environment),) = started
    expected = {"--max-model-len": "128", "--max-num-seqs": "8", "--dtype": "float32", "--shutdown-timeout": "3"}
    assert {flag: option(words, flag) for flag in expected} == expected
    assert "--block-size" not in words
    assert words[-2:] == ["--tensor-parallel-size", "2"]
    assert option(words, "--served-model-name") == guides.name
    assert environment[OTHER_PRECISION] == "1"
    printed = capsys.readouterr().err
    assert "starting" in printed
    assert "secret" not in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--presets", __file__], "--presets means nothing to vLLM"),
        (["--admin_key", "k"], "--admin_key means nothing to vLLM"),
        (["--request_timeout", "5"], "--request_timeout means nothing to vLLM"),
        (["--max_body_bytes", "5"], "--max_body_bytes means nothing to vLLM"),
        (["--device", "cpu"], "--device means nothing to vLLM"),
        (["--device_map", "auto"], "--device_map means nothing to vLLM"),
        (["--attn_implementation", "sdpa"], "--attn_implementation means nothing to vLLM"),
        (["--vocab_map"], "--vocab_map means nothing to vLLM"),
    ],
)
def test_options_of_the_other_engine_are_refused_by_name(flags, words, guides, python, started, capsys):
    assert main(["serve", str(guides), "--backend", "vllm", "--vllm_python", python(), *flags]) == 2
    assert words in capsys.readouterr().err
    assert started == []


def test_options_of_vllm_need_its_backend(guides, capsys):
    assert main(["serve", str(guides), "--vllm_python", sys.executable]) == 2
    assert "--vllm_python goes with --backend vllm" in capsys.readouterr().err
    assert main(["serve", str(guides), "--", "--seed", "1"]) == 2
    assert "-- goes with --backend vllm" in capsys.readouterr().err


# ---- the golden file -------------------------------------------------------------------------------------


def test_the_library_still_says_what_the_kept_golden_file_has():
    """The plugin's tests compare vLLM with the same file."""
    spec = importlib.util.spec_from_file_location("golden", TESTS / "golden.py")
    golden = importlib.util.module_from_spec(spec)
    sys.modules["golden"] = golden
    spec.loader.exec_module(golden)
    case, kept = golden.CASES[golden.KEPT], load_file(golden.KEPT_FILE)
    answers = golden.answers(golden.build(case), golden.requests_of(list(case.guides), case.fusion))
    assert torch.equal(answers["tokens"], kept["tokens"])
    assert (answers["logprobs"] - kept["logprobs"]).abs().max() < 1e-4
