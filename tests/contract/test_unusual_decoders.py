"""Decoders with recurrent layers, and others whose head, cache or layers are unusual, with guides of each need."""

from dataclasses import replace

import pytest
import torch
from models import STREAMS, UNUSUAL, config_of, guided_lm, tiny_lm

from dual_head import AlignedModel, DualHeadError

GREEDY = {"do_sample": False, "max_new_tokens": 4}

KINDS = ["hidden", "reward_head", "steering", "language_model"]
each_architecture = pytest.mark.parametrize("architecture", UNUSUAL)
each_pair = pytest.mark.parametrize(
    ("architecture", "kind"), [(x, kind) for x in UNUSUAL for kind in KINDS if kind != "steering" or x not in STREAMS]
)


def guided(kind: str, architecture: str) -> AlignedModel:
    config = config_of(kind, architecture)
    if kind == "language_model" and architecture == "falcon_h1":
        config = replace(config, target_modules=["q_proj", "in_proj", "gate_proj"])  # not all that Mamba has
    return guided_lm({"g": config}, architecture)


def prompts(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 97, (rows, 9), generator=torch.Generator().manual_seed(7))


@each_pair
def test_alpha_0_gives_the_bits_of_the_model_by_itself(kind, architecture):
    ids, frozen = prompts(), tiny_lm(architecture).eval().requires_grad_(False)  # torch rounds others otherwise
    assert guided(kind, architecture)(ids, alpha=0.0).logits.equal(frozen(ids).logits)


@each_pair
def test_decoding_with_a_cache_equals_one_pass_also_behind_padding(kind, architecture):
    model, ids, mask = guided(kind, architecture), prompts(), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    out = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **GREEDY)
    mask = torch.cat([mask, torch.ones(2, 4, dtype=torch.long)], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        whole = model(out.sequences, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(torch.stack(out.logits, 1), whole[:, 8:-1], atol=1e-4, rtol=1e-4)


@each_architecture
def test_beams_reorder_the_state_of_a_guide_that_is_such_a_model(architecture):
    model, ids = guided("language_model", architecture), prompts(1)
    cached, uncached = (model.generate(ids, num_beams=3, use_cache=x, **GREEDY) for x in (True, False))
    assert cached.tolist() == uncached.tolist()


@pytest.mark.parametrize("kind", ["steering", "language_model"])
def test_a_static_cache_has_no_room_for_the_state_of_a_guide(kind):
    with pytest.raises(DualHeadError, match="Leave cache_implementation out"):
        guided(kind, "lfm2").generate(prompts(), cache_implementation="static", disable_compile=True, **GREEDY)


def test_a_reward_model_of_layers_that_cannot_forget_is_refused():
    with pytest.raises(DualHeadError, match="Choose a model whose layers are all of attention"):
        guided("reward_model", "lfm2")


@pytest.mark.parametrize("architecture", STREAMS)
@pytest.mark.parametrize("kind", ["steering", "multilayer"])
def test_layers_of_several_streams_are_neither_read_nor_steered(kind, architecture):
    with pytest.raises(DualHeadError, match=r"several streams of a token.*Choose a guide of the last hidden state"):
        guided(kind, architecture)(prompts(), alpha=1.0)


def test_a_lora_on_what_kernels_read_themselves_is_refused_with_the_remedy():
    with pytest.raises(DualHeadError, match=r"'out_proj' is incompatible .*Name other layers \(--guide.target_modules"):
        guided_lm({"g": config_of("language_model")}, "falcon_h1")


def test_drafts_are_refused_where_the_backbone_cannot_take_tokens_back():
    model, refusal = guided("hidden", "jamba"), "assisted generation is not supported with stateful models"
    with pytest.raises(ValueError, match=refusal):
        tiny_lm("jamba").generate(prompts(1), prompt_lookup_num_tokens=2, **GREEDY)
    with pytest.raises(DualHeadError, match=refusal):
        model.generate(prompts(1), prompt_lookup_num_tokens=2, **GREEDY)
