"""A backbone and a tokenizer are told from any other, and are the same in another dtype."""

import copy
import json

import pytest
import torch
from files import word_tokenizer
from models import ARCHITECTURES, tiny_lm
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import Fingerprint, tokenizer_fingerprint

every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))


def fingerprint(lm) -> Fingerprint:
    return Backbone(lm).fingerprint()


@every_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_fingerprint_survives_a_change_of_dtype(name, dtype):
    assert fingerprint(tiny_lm(name)).differences(fingerprint(tiny_lm(name).to(dtype))) == []


@every_architecture
def test_other_weights_of_the_same_sizes_are_told_apart(name):
    (said,) = fingerprint(tiny_lm(name)).differences(fingerprint(tiny_lm(name, seed=1)))
    assert "other weights" in said


def test_other_sizes_and_architectures_are_named():
    assert fingerprint(tiny_lm("llama")).differences(fingerprint(tiny_lm("gpt2"))) == [
        "architecture LlamaForCausalLM against GPT2LMHeadModel"
    ]
    deeper = AutoModelForCausalLM.from_config(llama_of(layers=3))
    assert fingerprint(tiny_lm("llama")).differences(fingerprint(deeper)) == ["num_layers 2 against 3"]


def llama_of(layers: int) -> LlamaConfig:
    config = ARCHITECTURES["llama"]()
    config.num_hidden_layers = layers
    return config


@pytest.mark.parametrize("layers", [2, 4])
def test_one_fine_tuned_tensor_is_enough_to_be_another_backbone(layers):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(llama_of(layers))
    original = fingerprint(lm)
    unnoticed = []
    for name, parameter in lm.named_parameters():
        before = parameter.detach().clone()
        parameter.data.add_(0.01 * torch.randn(parameter.shape))
        if not original.differences(fingerprint(lm)):
            unnoticed.append(name)
        parameter.data.copy_(before)
    assert unnoticed == []


def test_a_fingerprint_round_trips_through_json():
    original = fingerprint(tiny_lm("qwen3"))
    read = Fingerprint.from_dict(json.loads(json.dumps(original.as_dict())))
    assert read == original
    assert read.short == original.short
    assert len(read.short) == 12


def test_a_tokenizer_is_named_by_its_tokens_and_their_ids():
    assert tokenizer_fingerprint(word_tokenizer()) == tokenizer_fingerprint(copy.deepcopy(word_tokenizer()))
    swapped = json.loads(word_tokenizer().backend_tokenizer.to_str())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["good0"], vocabulary["good1"] = vocabulary["good1"], vocabulary["good0"]
    other = type(word_tokenizer())(tokenizer_object=Tokenizer.from_str(json.dumps(swapped)))
    assert len(other) == len(word_tokenizer())
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(word_tokenizer())
