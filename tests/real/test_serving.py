"""Serving on a real model: 64 requests of 64 pairs of strengths at once give the tokens of generate, one by one."""

import asyncio

import pytest
import torch
from transformers import AutoTokenizer

from dual_head import AlignedModel, HiddenConfig
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Piece, Sampling

pytestmark = [pytest.mark.real, pytest.mark.slow]

REQUESTS, TOKENS = 64, 16
TOPICS = ["the sea", "a clock", "bread", "winter", "a small town", "music", "the moon", "an old dog"]
ASKS = ["Write a line about", "What is", "Why do people like", "Tell a story of", "Describe", "Name three facts of"]


@pytest.fixture(scope="module")
def engine(smollm2):
    """SmolLM2 with two random hidden guides."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    guides = {"helpful": HiddenConfig(rank=4), "harmless": HiddenConfig(rank=4)}
    model = AlignedModel.from_backbone(smollm2, guides, tokenizer=tokenizer)
    torch.manual_seed(0)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with Engine(model, tokenizer, EngineSettings(num_blocks=160, max_rows=REQUESTS)) as running:
        yield running


@pytest.fixture(scope="module")
def requests(engine) -> list[GenerationRequest]:
    prompts = [f"{ask} {topic}?" for topic in TOPICS for ask in ASKS] + [f"Who knows {t}?" for t in TOPICS] * 2
    return [
        GenerationRequest(
            engine.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
            )["input_ids"],
            TOKENS,
            {"helpful": (i % 8) / 2 - 1, "harmless": (i // 8) / 4},
            Sampling(temperature=0.0),
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def expected(engine, requests) -> list[list[int]]:
    outputs = [
        engine.model.generate(
            torch.tensor([one.prompt_ids]), alpha=dict(one.alpha), max_new_tokens=TOKENS, do_sample=False
        )
        for one in requests
    ]
    return [output[0, len(one.prompt_ids) :].tolist() for one, output in zip(requests, outputs, strict=True)]


def ids(pieces: list[Piece]) -> list[int]:
    return [token.id for piece in pieces for token in piece.tokens]


def test_all_at_once_give_the_tokens_of_one_by_one(engine, requests, expected):
    assert len({tuple(one.alpha.values()) for one in requests}) == len(requests) == REQUESTS
    plain = engine.generate([GenerationRequest(one.prompt_ids, TOKENS, {}, one.sampling) for one in requests])
    assert sum(ids([piece]) != tokens for piece, tokens in zip(plain, expected, strict=True)) > REQUESTS / 2
    pieces = engine.generate(requests)
    assert [ids([piece]) for piece in pieces] == expected
    assert [piece.text for piece in pieces] == [
        engine.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected
    ]


def test_streams_all_at_once_give_the_tokens_of_one_by_one(engine, requests, expected):
    async def stream(one: GenerationRequest) -> list[Piece]:
        return [piece async for piece in engine.stream(one)]

    async def all_at_once() -> list[list[Piece]]:
        return await asyncio.gather(*map(stream, requests))

    assert [ids(pieces) for pieces in asyncio.run(all_at_once())] == expected
    assert engine.stats().prefix_hit_tokens > 0
