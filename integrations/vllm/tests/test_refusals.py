"""What is refused, and how: kinds, backbones, options of vLLM, strengths, versions."""

import json
import shutil

import pytest
import vllm
from dual_head_vllm import engine_options, register, require_tested_vllm
from dual_head_vllm.control import AlphaControl
from engines import Golden, engine, generate, process, sampling
from vllm.exceptions import VLLMValidationError

from dual_head.errors import DualHeadError
from dual_head.serve.vllm import GUIDES, OTHER_PRECISION


def with_config(guides, place, change):
    """A copy of a folder of guides with another config.json."""
    shutil.copytree(guides, place)
    values = json.loads((place / "config.json").read_text())
    change(values)
    (place / "config.json").write_text(json.dumps(values))
    return place


@pytest.mark.parametrize("kind", ["language_model", "reward_model"])
def test_a_guide_that_runs_a_model_of_its_own_is_refused_by_name(kind, tmp_path):
    def change(values):
        values["guides"]["one"]["kind"] = kind

    folder = with_config(Golden.of("hidden").guides, tmp_path / "guides", change)
    with pytest.raises(
        DualHeadError, match=f"The guide 'one' of kind {kind} cannot be served by vLLM: it runs a model"
    ):
        engine_options(folder)


def test_drafts_of_tokens_are_refused():
    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    # In a process of its own: what vLLM imports for drafts breaks engines that are made after it in the same one.
    ended = process("hidden", speculative_config=drafts)
    assert ended.returncode != 0
    assert "DualHeadError: Guides are not served with speculative decoding" in ended.stderr


def test_adapters_are_refused():
    with (
        pytest.raises(DualHeadError, match="not served with LoRA"),
        engine(Golden.of("hidden").guides, enable_lora=True),
    ):
        pass


def test_another_backbone_is_refused_by_its_sizes_and_by_its_weights(tmp_path, monkeypatch):
    golden = Golden.of("hidden")

    def sizes(values):
        values["backbone_fingerprint"]["hidden_size"] = 32

    def weights(values):
        values["backbone_fingerprint"]["sketch"]["model.norm.weight"][0] += 1.0

    smaller = with_config(golden.guides, tmp_path / "smaller", sizes)
    with pytest.raises(DualHeadError, match="another backbone: hidden_size 32 against 64"), engine(smaller):
        pass
    other = with_config(golden.guides, tmp_path / "other", weights)
    with pytest.raises(DualHeadError, match=r"the same sizes but other weights \(model.norm.weight\)"), engine(other):
        pass
    monkeypatch.setenv(OTHER_PRECISION, "1")
    with engine(other):
        pass


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        ("nobody=1", "No guide is named 'nobody'"),
        ({"one": "much"}, "alpha is a number"),
        ({"one": float("nan")}, "NaN or infinity"),
        (True, "alpha is a number"),
        ([0.5], "alpha is a number"),
        ({"one": {"start": 1, "end": 0, "tokens": 4}}, "A strength that decays is not there on vLLM"),
    ],
)
def test_strengths_that_cannot_be_are_refused_before_they_run(alpha, words, monkeypatch):
    monkeypatch.setenv(GUIDES, str(Golden.of("hidden").guides))
    with pytest.raises(DualHeadError, match=words):
        AlphaControl.validate_params(sampling(alpha, 1))


def test_an_engine_answers_on_after_a_request_that_it_refused():
    golden = Golden.of("hidden")
    with engine(golden.guides) as llm:
        with pytest.raises(VLLMValidationError, match="No guide is named 'nobody'"):
            generate(llm, [[5, 6]], [sampling("nobody=1", 1)])
        with_text, with_mapping = (
            generate(llm, [[5, 6]], [sampling(alpha, 4)])[0].outputs[0]
            for alpha in ("one=0.5,three=2", {"one": 0.5, "three": 2.0})
        )
        assert with_text.token_ids == with_mapping.token_ids
        alone, default = (generate(llm, [[5, 6]], [sampling(alpha, 4)])[0].outputs[0] for alpha in (1, None))
        assert alone.token_ids == default.token_ids


def test_without_guides_the_plugin_is_idle_and_alpha_is_refused(monkeypatch):
    monkeypatch.delenv(GUIDES, raising=False)
    AlphaControl.validate_params(sampling(None, 1))
    with pytest.raises(DualHeadError, match="This model has no guide"):
        AlphaControl.validate_params(sampling(1.0, 1))


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0"])
def test_a_version_of_vllm_that_was_not_tested_is_refused(version, monkeypatch):
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(DualHeadError, match=f"tested with vLLM >=0.32,<0.33, and this is {version}"):
        require_tested_vllm()
    monkeypatch.delenv(GUIDES, raising=False)
    register()  # plain models run with any version
    monkeypatch.setenv(GUIDES, "somewhere")
    with pytest.raises(DualHeadError):
        register()
