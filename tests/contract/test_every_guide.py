"""What every guide keeps on every architecture; both are found by themselves.

A new file under guides/ is tested here without an edit. Weights are drawn large, so that a guide that did
nothing, or a cache that forgot, could not pass by being close to the backbone.
"""

import copy

import pytest
import torch
import yaml
from models import ARCHITECTURES, IMAGE_TEXT, OTHERS, config_of, tiny_lm
from torch import nn

from dual_head import AlignedModel
from dual_head.data.collate import PairCollator
from dual_head.errors import DualHeadError
from dual_head.guides import guide_class, kinds
from dual_head.losses.kl import Kl
from dual_head.losses.next_token import NextToken
from dual_head.losses.preference import Preference
from dual_head.methods import Method
from dual_head.train.step import GuidedLoss

ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10, 2], "rejected_ids": [11, 12, 2]},
    {"prompt_ids": [13, 14], "chosen_ids": [15, 2], "rejected_ids": [16, 17, 18, 19, 2]},
]
GREEDY = {"do_sample": False, "max_new_tokens": 12}  # longer than the sliding windows of 8
CLOSE = {"atol": 2e-4, "rtol": 1e-4}

pytestmark = [
    pytest.mark.parametrize("kind", kinds()),
    pytest.mark.parametrize(
        "architecture",
        [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in (*OTHERS, *IMAGE_TEXT))],
    ),
]


def guided(kind: str, architecture: str, *, names: tuple[str, ...] = ("g",), seed: int = 0) -> AlignedModel:
    """A tiny backbone with guides whose every weight is random, and no end-of-sequence to stop at."""
    lm = tiny_lm(architecture, seed=seed)
    lm.generation_config.eos_token_id = None
    model = AlignedModel.from_backbone(lm, dict.fromkeys(names, config_of(kind, architecture)))
    torch.manual_seed(seed + 1)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def prompts(rows: int, length: int = 10) -> torch.Tensor:
    torch.manual_seed(7)
    return torch.randint(3, 97, (rows, length))


def a_method(kind: str) -> Method:
    return Method(
        name="g",
        guide=config_of(kind),
        objectives=(NextToken(), Preference(beta=0.5), Kl(weight=0.001)),
    )


def trained(kind: str, model: AlignedModel, **options) -> GuidedLoss | None:
    """The training step; None, after seeing it refused, for a guide that only acts while decoding."""
    step = GuidedLoss(model, a_method(kind), guide="g", **options).train()
    if guide_class(kind).trainable:
        return step
    with pytest.raises(DualHeadError, match="only acts during decoding"):
        step(**PairCollator(0)(ROWS))
    return None


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_alpha_0_gives_the_bits_of_the_model_loaded_by_itself(kind, architecture, rows):
    model, ids = guided(kind, architecture), prompts(rows)
    lm = tiny_lm(architecture).eval()  # weights that want a gradient, as from_pretrained leaves them
    lm.generation_config.eos_token_id = None
    for keep in (0, 1, 3, torch.tensor([2, 7])):
        assert torch.equal(model(ids, alpha=0.0, logits_to_keep=keep).logits, lm(ids, logits_to_keep=keep).logits)
    options = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = model.generate(ids, alpha=0.0, **options), lm.generate(ids, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


def test_a_guide_changes_the_logits(kind, architecture):
    model, ids = guided(kind, architecture), prompts(2)
    assert (model(ids, alpha=1.0).logits - model(ids, alpha=0.0).logits).abs().max() > 0.1


def test_decoding_with_a_cache_equals_one_pass(kind, architecture):
    model, ids = guided(kind, architecture), prompts(2, 14)
    whole = model(ids, alpha=1.0).logits
    step = model(ids[:, :5], alpha=1.0, use_cache=True)
    logits, cache = [step.logits], step.past_key_values
    for t in range(5, 14):
        logits.append(model(ids[:, t : t + 1], alpha=1.0, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, **CLOSE)


def test_a_static_cache_equals_a_dynamic_one(kind, architecture):
    model, ids = guided(kind, architecture), prompts(2)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    dynamic = model.generate(ids, attention_mask=mask, alpha=1.0, **GREEDY)
    static = model.generate(ids, attention_mask=mask, alpha=1.0, cache_implementation="static", **GREEDY)
    assert torch.equal(dynamic, static)


def test_no_cache_equals_a_cache(kind, architecture):
    model, ids = guided(kind, architecture), prompts(2)
    assert torch.equal(
        model.generate(ids, alpha=1.0, use_cache=False, **GREEDY), model.generate(ids, alpha=1.0, **GREEDY)
    )


def test_left_padding_changes_nothing(kind, architecture):
    model, ids = guided(kind, architecture), prompts(1, 6)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = torch.tensor([[0] * 4 + [1] * 6])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    alone = model(ids, alpha=1.0).logits
    with_padding = model(padded, attention_mask=mask, position_ids=positions, alpha=1.0).logits
    assert with_padding.isfinite().all()
    torch.testing.assert_close(with_padding[:, 4:], alone, **CLOSE)


def test_a_batch_equals_its_rows(kind, architecture):
    model, ids = guided(kind, architecture), prompts(3)
    together = model.generate(ids, alpha=1.0, **GREEDY)
    for i in range(3):
        assert torch.equal(together[i : i + 1], model.generate(ids[i : i + 1], alpha=1.0, **GREEDY))


def test_alpha_per_row_equals_rows_one_by_one(kind, architecture):
    model, ids = guided(kind, architecture), prompts(3)
    alphas = [0.0, 0.5, -1.5]
    together = model.generate(ids, alpha=alphas, **GREEDY)
    for i, alpha in enumerate(alphas):
        assert torch.equal(together[i : i + 1], model.generate(ids[i : i + 1], alpha=alpha, **GREEDY))


def test_beams_reorder_the_guides_cache(kind, architecture):
    model, ids = guided(kind, architecture), prompts(2)
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    cached = model.generate(ids, alpha=[1.0, 0.5], **beams)
    assert torch.equal(cached, model.generate(ids, alpha=[1.0, 0.5], use_cache=False, **beams))


@pytest.mark.parametrize("how", ["assistant", "prompt_lookup"])
def test_assisted_decoding_crops_the_guides_cache(kind, architecture, how):
    model, ids = guided(kind, architecture), prompts(1)
    # An assistant that agrees now and then: the unguided backbone itself.
    option = {"assistant_model": model.backbone.lm} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    assert torch.equal(model.generate(ids, alpha=0.3, **option, **GREEDY), model.generate(ids, alpha=0.3, **GREEDY))


def test_two_guides_add_up_and_either_can_be_off(kind, architecture):
    twins, ids = guided(kind, architecture, names=("a", "b")), prompts(2)
    for own, other in zip(twins.guide("a").parameters(), twins.guide("b").parameters(), strict=True):
        other.data.copy_(own)
    both = twins(ids, alpha={"a": 0.75, "b": [0.5, -0.25]}).logits
    if guide_class(kind).steers_layers:  # not linear in alpha: what each gives by itself is added up
        alone = twins(ids, alpha={"a": 0.75}).logits + twins(ids, alpha={"b": [0.5, -0.25]}).logits
        torch.testing.assert_close(both, alone - twins(ids, alpha=0.0).logits, **CLOSE)
    else:
        torch.testing.assert_close(both, twins(ids, alpha={"a": [1.25, 0.5]}).logits, **CLOSE)
    model = guided(kind, architecture, names=("a", "b"))
    for alpha in ({"b": 1.0}, {"a": 0.7, "b": [0.0, 1.0]}):
        cached = model.generate(ids, alpha=alpha, **GREEDY)
        assert torch.equal(cached, model.generate(ids, alpha=alpha, use_cache=False, **GREEDY))


def test_a_guide_that_is_off_is_not_computed(kind, architecture):
    model, ids = guided(kind, architecture, names=("on", "off")), prompts(2)
    calls = []
    model.guides["off"].encode = lambda *_: calls.append("encode")
    model.guides["off"].logit_delta = lambda *_: calls.append("logit_delta")
    model.generate(ids, alpha={"on": 1.0}, **GREEDY)
    assert not calls


def test_training_leaves_the_backbone_alone_and_moves_the_guide(kind, architecture):
    model = guided(kind, architecture)
    before = copy.deepcopy(model.backbone.lm.state_dict())
    started = copy.deepcopy(model.guides.state_dict())
    if (step := trained(kind, model)) is None:
        return
    optimizer = torch.optim.AdamW(model.guides.parameters(), lr=1e-2)
    step(**PairCollator(0)(ROWS))["loss"].backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.lm.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert not any(module.training for module in model.backbone.modules())
    assert any(not torch.equal(started[name], value) for name, value in model.guides.state_dict().items())


def test_save_and_load_give_the_same_logits(kind, architecture, tmp_path):
    model, ids = guided(kind, architecture), prompts(2)
    model.save_pretrained(tmp_path)
    loaded = AlignedModel.from_pretrained(str(tmp_path), backbone=tiny_lm(architecture, seed=0))
    assert torch.equal(loaded(ids, alpha=0.7).logits, model(ids, alpha=0.7).logits)
    assert not any(name.startswith("backbone") for name in _stored(tmp_path))


def test_one_pair_is_overfitted(kind, architecture):
    model = AlignedModel.from_backbone(tiny_lm(architecture, seed=0), {"g": config_of(kind, architecture)})
    if (step := trained(kind, model)) is None:
        return
    optimizer = torch.optim.AdamW(model.guides.parameters(), lr=3e-2)
    batch = PairCollator(0)(ROWS[:1])
    # Adapters inside a frozen tiny model only reach what its own lm_head can say; a head of one's own, anything.
    enough = step(**batch)["next_token"].item() - 0.3 if guide_class(kind).reads_tokens else 0.3
    for _ in range(300):
        optimizer.zero_grad()
        out = step(**batch)
        if out["next_token"].item() < enough and out["accuracy"].item() == 1:
            return
        out["loss"].backward()
        optimizer.step()
    pytest.fail(f"after 300 steps: {out}")


def test_the_config_survives_yaml(kind, architecture):
    config = config_of(kind, architecture)
    assert type(config).from_dict(yaml.safe_load(yaml.safe_dump(config.as_dict()))) == config


def test_chunks_change_nothing(kind, architecture):
    results = []
    for budget in (1, 10**9):  # one token at a time, and everything at once
        model = guided(kind, architecture)
        if (step := trained(kind, model, budget=budget)) is None:
            return
        out = step(**PairCollator(0)(ROWS))
        out["loss"].backward()
        results.append((out, {name: p.grad for name, p in model.guides.named_parameters()}))
    (one, one_grads), (whole, whole_grads) = results
    for name in one:
        torch.testing.assert_close(one[name], whole[name], atol=1e-5, rtol=1e-4)
    for name, grad in one_grads.items():
        torch.testing.assert_close(grad, whole_grads[name], atol=1e-4, rtol=1e-4)


def test_a_prompt_shared_by_both_responses_and_a_row_by_pairs_change_nothing(kind, architecture):
    model = guided(kind, architecture)
    if model.why_no_shared_prompts(["g"], longest=6) or (step := trained(kind, model)) is None:
        return
    step.eval()  # dropout falls elsewhere in rows of another shape
    results = []
    for share in (False, True):
        model.zero_grad()
        batch = PairCollator(0, share_prompt=share)(ROWS)
        assert len(batch["input_ids"]) == (1 if share else 4)
        out = step(**batch)
        out["loss"].backward()
        results.append((out, {name: p.grad.clone() for name, p in model.guides.named_parameters()}))
    (apart, apart_grads), (shared, shared_grads) = results
    for name in apart:
        torch.testing.assert_close(shared[name], apart[name], atol=1e-5, rtol=1e-4)
    for name, grad in apart_grads.items():
        torch.testing.assert_close(shared_grads[name], grad, atol=1e-4, rtol=1e-4)


def test_bf16_gives_no_nan_for_extreme_weights(kind, architecture):
    model, ids = guided(kind, architecture), prompts(2)
    model.to(torch.bfloat16)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=100.0)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    assert model(ids, attention_mask=mask, alpha=1.0).logits.isfinite().all()
    if (step := trained(kind, model)) is None:
        return
    out = step(**PairCollator(0)(ROWS))
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.guides.parameters())


def _stored(folder) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())
