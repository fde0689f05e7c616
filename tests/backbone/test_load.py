"""A backbone is loaded as asked, or refused with what is missing or damaged."""

import pytest
import torch
from files import word_tokenizer, write_guides
from models import VOCAB, tiny_lm
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dual_head import DualHeadError
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.load import load_backbone
from dual_head.guides.linear import LinearConfig


def test_a_missing_folder_is_refused_with_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DualHeadError, match=r"There is no backbone at .*nothing.*--backbone"):
        load_backbone(str(tmp_path / "nothing"))


@pytest.fixture
def asked_of_transformers(monkeypatch):
    """Arguments of the last AutoModelForCausalLM.from_pretrained, which loads a tiny model whatever they are."""
    options = {}

    def load(name, *, output_loading_info, **given):
        options.update(given, name=name)
        return tiny_lm("llama"), {"missing_keys": set()}

    def nowhere(*_args, **_options):
        raise OSError("no such model")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    for reader in ("AutoConfig.from_pretrained", "PreTrainedConfig.get_config_dict"):
        monkeypatch.setattr(f"dual_head.backbone.load.{reader}", nowhere)  # and nobody asks the hub
    return options


def test_remote_code_is_not_trusted_unless_asked(asked_of_transformers):
    load_backbone("org/model")
    assert asked_of_transformers == {"name": "org/model", "dtype": "auto", "trust_remote_code": False}
    load_backbone("org/model", trust_remote_code=True)
    assert asked_of_transformers["trust_remote_code"] is True


def test_options_reach_transformers_as_given(asked_of_transformers):
    options = {
        "dtype": torch.bfloat16,
        "device_map": "auto",
        "attn_implementation": "eager",
        "quantization_config": object(),
        "revision": "main",
    }
    load_backbone("org/model", **options)
    assert asked_of_transformers == {"name": "org/model", "trust_remote_code": False, **options}


def test_a_saved_backbone_loads_with_its_bits(tmp_path):
    lm = tiny_lm("qwen2").eval()
    lm.save_pretrained(tmp_path)
    loaded = Backbone(load_backbone(str(tmp_path)))
    assert loaded.fingerprint() == Backbone(lm).fingerprint()
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == VOCAB


# ---- files that are damaged --------------------------------------------------------------------------------


def spoilt_weights(folder, change):
    """Change the weights of a saved model as a function of them does."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_a_backbone_that_lacks_weights_is_refused_and_one_of_tied_weights_is_whole(tmp_path):
    tiny_lm("llama_tied").save_pretrained(tmp_path / "tied")
    assert load_backbone(str(tmp_path / "tied")) is not None
    tiny_lm("llama").save_pretrained(tmp_path / "cut")
    spoilt_weights(tmp_path / "cut", lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(DualHeadError, match=r"lacks 1 weights, the first is 'lm_head\.weight'.*Download it again"):
        load_backbone(str(tmp_path / "cut"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_backbone_of_nan_or_infinity_is_refused(tmp_path, value):
    tiny_lm("llama").save_pretrained(tmp_path)
    spoilt_weights(tmp_path, lambda weights: weights["model.norm.weight"].view(-1)[3].fill_(value))
    with pytest.raises(DualHeadError, match=r"hold NaN or infinity, in 'model\.norm\.weight' first"):
        load_backbone(str(tmp_path))


def test_guides_are_no_backbone_for_guides(tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path / "backbone")
    write_guides(tmp_path / "guides", tmp_path / "backbone", {"g": LinearConfig()}, tokenizer=word_tokenizer())
    with pytest.raises(DualHeadError, match=r"holds guides.*Give the backbone that they go on"):
        Backbone(load_backbone(str(tmp_path / "guides")))
