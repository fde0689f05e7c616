"""Guides that are the backbone with a LoRA run in its forward while decoding: same logits, one forward, same caches."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, LAYERS, VOCAB, guided_lm
from torch import Tensor
from transformers import DynamicCache

from dual_head import AlignedModel, DualHeadError
from dual_head.backbone.joint import JointDecoder
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.guides.prompt_contrast import PromptContrastConfig
from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.guides.reward_model import RewardModelConfig
from dual_head.guides.steering import SteeringConfig

ARM = LanguageModelConfig()
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
GREEDY = {"do_sample": False, "max_new_tokens": 8}
HEAD = RewardHeadConfig(num_heads=2, head_dim=8)


def prompts(rows: int, length: int = 6) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(7))


def joint_steps(monkeypatch) -> list[int]:
    """The rows of every joint forward of several parts from now on."""
    seen: list[int] = []
    forward = JointDecoder.forward

    def counting(self, input_ids, **given):
        if self._parts > 1:
            seen.append(self._parts * len(input_ids))
        return forward(self, input_ids, **given)

    monkeypatch.setattr(JointDecoder, "forward", counting)
    return seen


def apart(monkeypatch, run: Callable[[], Any]) -> Any:
    """What `run` gives where every model runs by itself, a LoRA as PEFT runs it."""
    with monkeypatch.context() as patch:
        patch.setattr(JointDecoder, "usable", lambda _: False)
        return run()


@torch.no_grad()
def steps(model: AlignedModel, ids: Tensor, **given: Any) -> Tensor:
    """Logits of a prompt and of the tokens that follow one by one."""
    cache, mask = DynamicCache(), given.pop("attention_mask", None)
    ends = [4, *range(5, ids.shape[1] + 1)]
    said = []
    for start, end in zip([0, *ends], ends, strict=False):
        own = {} if mask is None else {"attention_mask": mask[:, :end]}
        if mask is not None:
            own["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, start:end]
        said.append(model(ids[:, start:end], past_key_values=cache, **own, **given).logits)
    return torch.cat(said, 1)


# ---- the same logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_step_says_what_backbone_and_guide_say_by_themselves(architecture, rows, monkeypatch):
    model, ids = guided_lm({"g": ARM}, architecture), prompts(rows)
    seen = joint_steps(monkeypatch)
    together = steps(model, ids, alpha=0.7)
    assert seen == [2 * rows] * 2
    torch.testing.assert_close(together, apart(monkeypatch, lambda: steps(model, ids, alpha=0.7)), **CLOSE)


MIXTURES = {
    "a tuned model": {"g": LanguageModelConfig(against="backbone")},
    "two rewards": {"help": ARM, "harm": LanguageModelConfig(rank=3, target_modules=["q_proj", "down_proj"])},
    "a head beside it": {"g": ARM, "head": HEAD},
    "a head before it": {"head": HEAD, "g": ARM},
    "one that reads layers": {"mav": MultilayerConfig(), "g": ARM},
    "one that edits": {"g": ARM, "edit": HiddenConfig()},
    "candidates of a reward model": {"g": ARM, "args": RewardModelConfig(k=3)},
    "prompts of several lengths": {
        "long": PromptContrastConfig(positive=[9, 8, 7, 6, 5], negative=[5, 6, 7]),
        "short": PromptContrastConfig(negative=[4]),
    },
    "prompts beside it": {"g": ARM, "prompts": PromptContrastConfig(positive=[4, 5], negative=None), "head": HEAD},
    "steered at two places": {"v": SteeringConfig(), "w": SteeringConfig(layers=[1, -1])},
    "steered beside it": {"g": ARM, "v": SteeringConfig(layers=[1]), "head": HEAD},
    "its lm_head as well": {"g": LanguageModelConfig(target_modules=["lm_head", "v_proj"])},
}


@pytest.mark.parametrize("guides", MIXTURES.values(), ids=MIXTURES)
def test_a_step_of_several_guides_is_that_of_each_by_itself(guides, monkeypatch):
    model, ids = guided_lm(guides), prompts(2)
    seen = joint_steps(monkeypatch)
    alpha = {name: [0.7, -0.4 - i] for i, name in enumerate(guides)}
    together = steps(model, ids, alpha=alpha)
    parts = 1 + sum(len(model.guide(name).joint_parts) for name in guides)
    assert parts > 1
    assert seen == [2 * parts] * 2
    torch.testing.assert_close(together, apart(monkeypatch, lambda: steps(model, ids, alpha=alpha)), **CLOSE)


@pytest.mark.parametrize(
    "guide",
    [ARM, PromptContrastConfig(positive=[9, 8, 7], negative=[5]), SteeringConfig()],
    ids=["lora", "prompts", "vectors"],
)
def test_left_padding_is_masked_in_the_rows_of_all(guide, monkeypatch):
    model, ids = guided_lm({"g": guide}), prompts(2)
    given = {"alpha": 1.0, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}
    seen = joint_steps(monkeypatch)
    together = steps(model, ids, **given)
    assert seen
    torch.testing.assert_close(together, apart(monkeypatch, lambda: steps(model, ids, **given)), **CLOSE)
    alone = steps(model, ids[:1, 2:], alpha=1.0)
    torch.testing.assert_close(together[:1, 2:], alone, **CLOSE)


@torch.no_grad()
def test_in_bf16_a_lora_in_fp32_is_added_in_fp32(monkeypatch):
    model, ids = guided_lm({"g": ARM}), prompts(2)
    model.backbone.to(torch.bfloat16)
    assert {p.dtype for p in model.guides.parameters()} == {torch.float32}
    seen = joint_steps(monkeypatch)
    together = steps(model, ids, alpha=1.0)
    assert seen
    separately = apart(monkeypatch, lambda: steps(model, ids, alpha=1.0))
    assert (together - separately).abs().mean() < 0.02 * separately.abs().mean()


# ---- one cache ----------------------------------------------------------------------------------------------


def test_what_a_step_keeps_are_layers_of_the_same_cache(monkeypatch):
    model, ids = guided_lm({"g": ARM}), prompts(2, 5)

    def filled() -> list[Tensor]:
        cache = DynamicCache()
        with torch.no_grad():
            model(ids[:, :3], alpha=1.0, past_key_values=cache)
            for t in (3, 4):
                model(ids[:, t : t + 1], alpha=1.0, past_key_values=cache)
        return [x for layer in cache.layers for x in (layer.keys, layer.values)]

    together = filled()
    assert len(together) == 2 * 2 * LAYERS
    for own, other in zip(together, apart(monkeypatch, filled), strict=True):
        torch.testing.assert_close(own, other, **CLOSE)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3, "top_k": 4}])
def test_beams_and_repeated_prompts_go_on_from_the_cache(options, monkeypatch):
    model, ids = guided_lm({"g": ARM, "head": HEAD}), prompts(2)
    seen = joint_steps(monkeypatch)

    def texts() -> Tensor:
        torch.manual_seed(0)
        return model.generate(ids, alpha=[1.0, 0.5], **{**GREEDY, **options})

    together = texts()
    assert seen == [2 * 3 * 2] * 7
    assert torch.equal(together, apart(monkeypatch, texts))


def test_what_was_cropped_off_is_written_anew(monkeypatch):
    model, ids = guided_lm({"g": ARM}), prompts(2)
    seen = joint_steps(monkeypatch)
    cache = DynamicCache()
    with torch.no_grad():
        model(ids[:, :4], alpha=1.0, past_key_values=cache)
        for token in (9, 10):
            model(torch.full((2, 1), token), alpha=1.0, past_key_values=cache)
        kept = copy.copy(cache)  # shares what it holds until either grows
        kept.layers = [copy.copy(layer) for layer in cache.layers]
        before = [layer.keys.clone() for layer in kept.layers]
        cache.crop(-2)
        given = [model(ids[:, t : t + 1], alpha=1.0, past_key_values=cache).logits for t in (4, 5)]
    assert len(seen) == 4
    torch.testing.assert_close(torch.cat(given, 1), steps(model, ids, alpha=1.0)[:, 4:], **CLOSE)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(kept.layers, before, strict=True))


@pytest.mark.parametrize("option", ["prompt_lookup_num_tokens", "assistant_model"])
def test_assisted_decoding_gives_the_same_tokens(option):
    model, ids = guided_lm({"g": ARM}), prompts(1)
    value = {"prompt_lookup_num_tokens": 2, "assistant_model": model.backbone.lm}[option]
    assert torch.equal(
        model.generate(ids, alpha=0.3, **{option: value}, **GREEDY), model.generate(ids, alpha=0.3, **GREEDY)
    )


@torch.no_grad()
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_beside_any_guide_the_backbone_keeps_its_bits_and_moves_nothing_it_holds(architecture):
    model, ids = guided_lm({"head": HEAD}, architecture), prompts(2, 12)
    ours, theirs, places = DynamicCache(), DynamicCache(), set()
    for start, end in [(0, 4), *((t, t + 1) for t in range(4, 12))]:
        hidden = model.encode(ids[:, start:end], past_key_values=ours, guides=("head",)).hidden
        alone = model.backbone.lm.base_model(ids[:, start:end], past_key_values=theirs).last_hidden_state
        assert torch.equal(hidden, alone)
        places.add(ours.layers[0].keys.data_ptr())
    assert len(places) == 2  # where the prompt was put, and where there is room


# ---- only where it is right ---------------------------------------------------------------------------------


def test_a_guide_that_is_off_leaves_the_backbones_own_bits(monkeypatch):
    model, ids = guided_lm({"g": ARM, "head": HEAD}), prompts(2)
    seen = joint_steps(monkeypatch)
    assert torch.equal(steps(model, ids, alpha=0.0), steps(AlignedModel.from_backbone(model.backbone.lm, {}), ids))
    steps(model, ids, alpha={"head": 1.0})
    assert not seen


def test_a_cache_that_was_filled_while_it_was_off_is_refused():
    model, cache, ids = guided_lm({"g": ARM}), DynamicCache(), prompts(1)
    with torch.no_grad():
        model(ids, alpha=0.0, past_key_values=cache)
        with pytest.raises(DualHeadError, match="filled while the guide was off"):
            model(ids[:, :1], alpha=1.0, past_key_values=cache)


@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}],
    ids=["static cache", "no cache"],
)
def test_other_caches_run_every_model_by_itself(options, monkeypatch):
    model, ids = guided_lm({"g": ARM}), prompts(2)
    expected = model.generate(ids, alpha=1.0, **GREEDY)
    seen = joint_steps(monkeypatch)
    assert torch.equal(model.generate(ids, alpha=1.0, **options, **GREEDY), expected)
    assert not seen


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_layers_that_forget_run_every_model_by_itself(architecture, monkeypatch):
    model, ids = guided_lm({"g": ARM}, architecture), prompts(2)
    seen = joint_steps(monkeypatch)
    cached = model.generate(ids, alpha=1.0, **GREEDY)  # with a window of 8, which it outgrows
    assert not seen
    assert torch.equal(cached, model.generate(ids, alpha=1.0, use_cache=False, **GREEDY))


def test_whoever_wants_a_gradient_or_trains_runs_every_model_by_itself(monkeypatch):
    model, cache, ids = guided_lm({"g": ARM}), DynamicCache(), prompts(1)
    seen = joint_steps(monkeypatch)
    model(ids, alpha=1.0, past_key_values=cache)
    model(ids[:, :1], alpha=1.0, past_key_values=cache).logits.sum().backward()
    assert all(p.grad is not None for p in model.guides.parameters())
    model.train()
    steps(model, ids, alpha=1.0)
    assert not seen


def test_whoever_hooks_into_the_backbone_sees_its_own_rows_only(monkeypatch):
    model, ids = guided_lm({"g": ARM}), prompts(2)
    seen, shapes = joint_steps(monkeypatch), []
    hook = model.backbone.lm.model.layers[0].register_forward_hook(
        lambda _, given, __: shapes.append(given[0].shape[0])
    )
    steps(model, ids, alpha=1.0)
    assert (seen, set(shapes)) == ([], {2})
    hook.remove()
    steps(model, ids, alpha=1.0)
    assert seen


def test_a_step_that_is_asked_for_hidden_states_gives_the_backbones(monkeypatch):
    model, ids, cache = guided_lm({"g": ARM}), prompts(2), DynamicCache()
    seen = joint_steps(monkeypatch)
    with torch.no_grad():
        model(ids, alpha=1.0, past_key_values=cache)
        out = model(ids[:, :1], alpha=1.0, past_key_values=cache, output_hidden_states=True)
    assert [tuple(x.shape[:2]) for x in out.hidden_states] == [(2, 1)] * (1 + LAYERS)
    assert not seen


def test_another_guide_in_its_place_is_another_decoder(monkeypatch):
    model, ids = guided_lm({"g": ARM}), prompts(2)
    before = steps(model, ids, alpha=1.0)
    model.detach("g")
    model.attach("g", LanguageModelConfig(rank=2))
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    after = steps(model, ids, alpha=1.0)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, apart(monkeypatch, lambda: steps(model, ids, alpha=1.0)), **CLOSE)
