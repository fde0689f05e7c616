"""What a step of decoding keeps for every guide: no waiting for the device, one graph for all tokens, static caches.

The first two are about time and cannot be seen in the tokens, so that they are counted.
"""

import functools

import pytest
import torch
from models import LAYERS, config_of, guided_lm, tiny_lm
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import StaticLayer

from dual_head import AlignedModel
from dual_head.guides import kinds

NEW = 5
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
FEW = 3  # tokens of a compiled generation, where each may be a graph of its own
SHORT = {**GREEDY, "max_new_tokens": FEW}
STATIC = {"cache_implementation": "static", "disable_compile": True}
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::is_nonzero", "aten::equal"}

every_kind = pytest.mark.parametrize("kind", kinds())


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split(".")[0] in WAITS
        return func(*args, **(kwargs or {}))


def guided(kind: str, architecture: str = "llama") -> AlignedModel:
    return guided_lm({"g": config_of(kind)}, architecture)


def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 97, (2, 6), generator=torch.Generator().manual_seed(7))
    return {"inputs": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}


def steps(model, within) -> None:
    """Let `within(forward)` take the place of the model's forward wherever it is given a single token."""
    forward = model.forward
    single = within(forward)

    @functools.wraps(forward)
    def step(**given):
        return (single if given["input_ids"].shape[1] == 1 else forward)(**given)

    model.forward = step


def waits(model, **options) -> list[int]:
    """How often each step of decoding waits."""
    counts: list[int] = []

    def counting(forward):
        def count(**given):
            with Waits() as seen:
                out = forward(**given)
            counts.append(seen.count)
            return out

        return count

    steps(model, counting)
    model.generate(**padded(), **options, **GREEDY)
    return counts


@every_kind
def test_a_step_waits_for_the_device_no_more_than_its_models_do_by_themselves(kind):
    model = guided(kind)
    # transformers looks into the padding mask once, and no guide runs a model that would do so again.
    alone = waits(tiny_lm("llama").eval())
    assert alone == [1] * (NEW - 1)
    assert all(count <= limit for count, limit in zip(waits(model, alpha=[0.7, 0.2]), alone, strict=True))


@every_kind
def test_a_step_with_a_static_cache_never_waits(kind):
    assert waits(guided(kind), alpha=[0.7, 0.2], **STATIC) == [0] * (NEW - 1)


def compiled(model, **options) -> tuple[torch.Tensor, int]:
    """The tokens whose steps were compiled without a break, and how many graphs that took."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    steps(model, functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=graphs))
    return model.generate(**padded(), **STATIC, **options, **SHORT), graphs.frame_count


@pytest.mark.heavy
@every_kind
@pytest.mark.parametrize("architecture", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_a_compiled_step_gives_the_same_tokens_and_no_more_graphs_than_the_backbone(kind, architecture):
    model, lm = guided(kind, architecture), tiny_lm(architecture).eval()
    assert model._can_compile_fullgraph != model.guide("g").steers_layers  # whose hooks no graph has
    if not model._can_compile_fullgraph:
        return
    eager = model.generate(**padded(), **STATIC, alpha=[0.7, 0.2], **SHORT)
    # One for all tokens; one for each where layers slide, for which transformers counts tokens in Python.
    alone = compiled(lm)[1]
    assert alone == (1 if architecture == "llama" else FEW - 1)
    tokens, graphs = compiled(model, alpha=[0.7, 0.2])
    assert torch.equal(tokens, eager)
    assert graphs == alone


@every_kind
def test_a_static_cache_holds_what_a_guide_keeps_in_static_layers(kind):
    model = guided(kind)
    options = {"cache_implementation": "static", "return_dict_in_generate": True}
    cache = model.generate(**padded(), alpha=1.0, **options, **GREEDY).past_key_values
    own = cache.layers[LAYERS:]
    assert len(own) == model.guide("g").cache_layers
    for layer in own:
        assert type(layer) is StaticLayer
        assert layer.keys.shape[-2] == layer.max_cache_len
        assert layer.get_seq_length() == 6 + NEW - 1
