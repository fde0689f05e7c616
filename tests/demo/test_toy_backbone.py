"""The shipped toy backbone: loads as any checkpoint does, fits its tokenizer, and knows the world."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dual_head.demo
from dual_head.demo import topics
from dual_head.demo.world import (
    all_requests,
    build_tokenizer,
    corpus,
    is_refusal,
    reward,
    sample_requests,
    steps_of,
)

FOLDER = Path(dual_head.demo.__path__[0], "toy_backbone")


@pytest.fixture(scope="module")
def backbone():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def answer(backbone, tokenizer, requests, **options):
    prompts = tokenizer([asked.prompt for asked in requests], return_tensors="pt", padding=True)
    tokens = backbone.generate(**prompts, max_new_tokens=60, **options)
    fresh = tokens[:, prompts["input_ids"].shape[1] :]
    return tokenizer.batch_decode(fresh)


def test_the_files_take_at_most_four_megabytes_and_anyone_may_read_them():
    files = list(FOLDER.iterdir())
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)


def test_the_model_is_a_small_llama_with_a_head_of_its_own(backbone, tokenizer):
    assert backbone.config.model_type == "llama"
    assert backbone.get_output_embeddings().weight is not backbone.get_input_embeddings().weight
    assert backbone.config.vocab_size == len(tokenizer)
    assert backbone.generation_config.eos_token_id == tokenizer.eos_token_id
    assert backbone.generation_config.pad_token_id == tokenizer.pad_token_id
    assert all(torch.isfinite(weight).all() for weight in backbone.parameters())


def test_the_shipped_tokenizer_is_the_one_the_world_builds(tokenizer):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.special_tokens_map == built.special_tokens_map
    assert tokenizer.padding_side == built.padding_side
    assert tokenizer.chat_template == built.chat_template
    for text in corpus(50, seed=0):
        ids = tokenizer(text).input_ids
        assert ids == built(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_greedy_replies_to_requests_it_was_trained_on_are_well_formed(backbone, tokenizer):
    requests = all_requests("train")[::54]
    for asked, reply in zip(requests, answer(backbone, tokenizer, requests, do_sample=False), strict=True):
        assert "</s>" in reply
        assert "<unk>" not in reply
        assert reply.partition("</s>")[0].split()[-1] in {".", "!"}
        assert reward(asked, reply).total > -4


def test_sampled_replies_are_mixed_and_their_steps_are_mostly_of_the_topic(backbone, tokenizer):
    requests = sample_requests(200, seed=7, split="test")
    torch.manual_seed(0)
    replies = answer(backbone, tokenizer, requests, do_sample=True, top_k=0)
    pairs = list(zip(requests, replies, strict=True))
    rights = [topics.TOPIC_OF[step] == asked.topic for asked, reply in pairs for step in steps_of(reply)]
    right = sum(rights) / len(rights)
    refused = sum(is_refusal(reply) for reply in replies) / len(replies)
    mean = sum(reward(asked, reply).total for asked, reply in pairs) / len(pairs)
    assert 0.55 < right < 0.85  # the policy: 0.7
    assert 0.2 < refused < 0.45  # 0.31
    assert -0.5 < mean < 0.8  # 0.15, with a standard error of 0.15
