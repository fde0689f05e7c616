"""Small engines for tests: tiny guided models, a tokenizer of characters, and plain generate to compare with."""

from collections.abc import Mapping, Sequence

import torch
from models import BOS, EOS, PAD, VOCAB, guided_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dual_head import AlignedModel
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.guides.steering import SteeringConfig
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest, Piece, Sampling

GREEDY = Sampling(temperature=0.0)
GUIDES = {
    "hidden": HiddenConfig(rank=4),
    "linear": LinearConfig(),
    "multilayer": MultilayerConfig(),
    "gate": RewardHeadConfig(num_heads=3, head_dim=5),  # 15 of the backbone's 16: padded
    "vectors": SteeringConfig(layers=[1, 2]),
    "reply_vectors": SteeringConfig(layers=[1], tokens="reply"),
    "even_gate": HiddenConfig(rank=4, gate="attention", num_heads=4, head_dim=8),  # two layers of the backbone's 2 x 8
}
LENGTHS = [3, 17, 40, 5, 29, 8, 61, 12]
ALPHAS = [0.0, 0.5, 1.0, -0.7, 2.0, 0.25, 1.5, 3.0]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character but the last, beside the three that every tiny model has; bytes as GPT-2's."""
    characters = ["Ġ" if i == 32 else chr(i) for i in range(32, 126)]
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {c: i + 3 for i, c in enumerate(characters)}
    assert len(vocabulary) == VOCAB
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


TOKENIZER = character_tokenizer()


def small_engine(model: AlignedModel, **settings) -> Engine:
    """An engine whose prompts go in chunks and whose rows are fewer than the prompts of the tests."""
    sizes = {"page_size": 8, "num_blocks": 64, "max_batch_tokens": 48, "max_rows": 8, **settings}
    return Engine(model, TOKENIZER, EngineSettings(**sizes))


def tiny_model(*names: str, **options) -> AlignedModel:
    """A tiny backbone with these guides of `GUIDES`, every weight random."""
    return guided_lm({name: GUIDES[name] for name in names}, **options)


def prompts(seed: int = 0) -> list[list[int]]:
    """Eight prompts of 3 to 61 tokens, two of which begin alike."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    made[3] = made[6][:48]
    return made


def alphas(names: Sequence[str], i: int, round_: int = 0) -> dict[str, float]:
    """Strengths of prompt i: others for every guide, prompt and round."""
    return {name: ALPHAS[(i + 3 * k + 5 * round_) % 8] for k, name in enumerate(names)}


def generated(model: AlignedModel, prompt: Sequence[int], alpha: Mapping | float, count: int, **options) -> list[int]:
    """The greedy tokens of plain generate."""
    output = model.generate(torch.tensor([prompt]), alpha=alpha, max_new_tokens=count, do_sample=False, **options)
    return output[0, len(prompt) :].tolist()


def ids(piece: Piece) -> list[int]:
    """The tokens of a piece."""
    return [token.id for token in piece.tokens]


def unequal_to_generate(engine: Engine, *, count: int = 6, rounds: int = 2) -> list[str]:
    """What differs between an engine and plain generate, at other strengths for each of eight prompts and each round.

    The second round sends the same prompts, so that it reads the pages of the first at other strengths.
    """
    names, differences = tuple(engine.model.config.guides), []
    backbone = engine.generate([GenerationRequest(prompt, count, {}, GREEDY) for prompt in prompts()])
    for round_ in range(rounds):
        requests = [
            GenerationRequest(prompt, count, alphas(names, i, round_), GREEDY) for i, prompt in enumerate(prompts())
        ]
        pieces = engine.generate(requests)
        for i, (request, piece) in enumerate(zip(requests, pieces, strict=True)):
            tokens = generated(engine.model, request.prompt_ids, request.alpha, count)
            if ids(piece) != tokens:
                differences.append(f"round {round_}, prompt {i}: {ids(piece)} instead of {tokens}")
        # Else strengths would not be seen.
        assert sum(ids(piece) != ids(other) for piece, other in zip(pieces, backbone, strict=True)) >= 3
    return differences
