"""Efficiency: times in turns, ratios of one round, and forwards and parameters that hooks confirm."""

import pytest
import torch
from files import word_tokenizer, write_backbone, write_guides
from models import guided_lm, tiny_lm
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaModel

import dual_head.evaluate.metrics.efficiency as measuring
from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.evaluate.metrics.costs import cost_of
from dual_head.evaluate.metrics.efficiency import measure_efficiency
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_model import RewardModelConfig

PROMPT = [1, 5, 6, 30]
GATED = RewardHeadConfig(num_heads=2, head_dim=4)


@pytest.fixture(scope="module")
def systems():
    tokenizer = word_tokenizer()
    guided = guided_lm({"gated": GATED, "plain": LinearConfig()})
    return [
        ("base", tiny_lm("llama").eval(), tokenizer, None),
        ("guided", guided, tokenizer, None),
        ("still", guided, tokenizer, 0.0),
    ]


def test_every_system_is_measured_at_every_batch_size(systems):
    rows = measure_efficiency(systems, [PROMPT] * 3, new_tokens=6, batch_sizes=(1, 3), rounds=2)
    assert [(row.batch_size, row.system) for row in rows] == [(b, s[0]) for b in (1, 3) for s in systems]
    for row in rows:
        assert row.prefill_ms > 0
        assert row.tokens_per_s == pytest.approx(row.batch_size * 1e3 / row.decode_ms)
        assert row.ratio["low"] <= row.ratio["median"] <= row.ratio["high"]
        assert (row.prompt_tokens, row.new_tokens, row.rounds) == (4, 6, 2)
        assert row.peak_mib is None or row.peak_mib >= row.weights_mib > 0
        if row.system == "base":
            assert row.ratio == row.prefill_ratio == {"median": 1, "low": 1, "high": 1}


def test_times_of_prefill_and_decoding_are_told_apart(systems, monkeypatch):
    """A clock that a system moves: a second for the prompt, and a quarter of one (guided: a half) for each token."""
    now = 0.0
    speed = {"base": 0.25, "guided": 0.5}

    def generate(system, ids, new_tokens):
        nonlocal now
        now += len(ids) * (1 + (new_tokens - 1) * speed[system[0]])

    monkeypatch.setattr(measuring, "_generate", generate)
    rows = measure_efficiency(systems[:2], [PROMPT] * 2, new_tokens=9, batch_sizes=(2,), rounds=3, clock=lambda: now)
    assert [(row.prefill_ms, row.decode_ms) for row in rows] == [(2000, 500), (2000, 1000)]
    assert [row.tokens_per_s for row in rows] == [4, 2]
    assert rows[1].ratio == {"median": 2, "low": 2, "high": 2}
    assert rows[1].prefill_ratio["median"] == 1


def test_a_ratio_compares_times_of_one_round(systems, monkeypatch):
    """The machine is three times slower in each round; no ratio notices, and no system always goes first."""
    now, whole = 0.0, []

    def generate(system, ids, new_tokens):
        nonlocal now
        now += 3 ** ((len(whole) - 4) // 2) * (new_tokens if system[0] == "base" else 5 * new_tokens)
        if new_tokens > 1:
            whole.append(system[0])  # after four runs to warm up, two in each round

    monkeypatch.setattr(measuring, "_generate", generate)
    rows = measure_efficiency(systems[:2], [PROMPT] * 2, new_tokens=3, batch_sizes=(1,), rounds=3, clock=lambda: now)
    assert whole == [*["base"] * 2, *["guided"] * 2, "base", "guided", "guided", "base", "base", "guided"]
    assert rows[0].ratio == {"median": 1, "low": 1, "high": 1}
    assert rows[1].ratio == pytest.approx({"median": 5, "low": 5, "high": 5})
    assert rows[1].decode_ms == pytest.approx(15e3)  # the second of rounds of 5, 15 and 45 seconds


# ---- what it is made of ----------------------------------------------------------------------------------


def counted(model, alpha) -> tuple[int, int]:
    """Decoders run, and parameters of the modules that ran, in the last step of generating."""
    ran: list[torch.nn.Module] = []
    # Where somebody hooks into the backbone every model runs by itself, so that what is counted is what is computed.
    apart = model.backbone.lm.register_forward_pre_hook(lambda *_: None)
    before = model.register_forward_pre_hook(lambda *_: ran.clear())
    hook = register_module_forward_hook(lambda module, *_: ran.append(module))
    try:
        model.generate(torch.tensor([PROMPT]), alpha=alpha, do_sample=False, max_new_tokens=3, eos_token_id=None)
    finally:
        hook.remove()
        apart.remove()
        before.remove()
    decoders = sum(isinstance(module, LlamaModel) for module in ran)
    return decoders, sum(p.numel() for module in ran for p in module.parameters(recurse=False))


@pytest.mark.parametrize("alpha", [1.0, 0.0])
@pytest.mark.parametrize("kind", ["reward_head", "language_model", "reward_model", "linear"])
def test_forwards_and_parameters_are_those_that_hooks_count(kind, alpha, tmp_path):
    pytest.importorskip("peft")
    place = write_backbone(tmp_path / "backbone")
    guide = {
        "reward_head": GATED,
        "language_model": LanguageModelConfig(rank=2),
        "reward_model": RewardModelConfig(tune="none", k=4),
        "linear": LinearConfig(),
    }[kind]
    model = AlignedModel.from_pretrained(str(write_guides(tmp_path / "guides", place, {"g": guide})))
    said = cost_of(model, alpha)
    forwards, executed = counted(model, alpha)
    assert (said.forwards, said.executed) == (forwards, executed)
    assert said.forwards == (2 if kind in ("language_model", "reward_model") and alpha else 1)
    assert said.added == sum(x.numel() for x in model.stored().values()) == said.trained
    assert said.parameters == sum(p.numel() for p in model.backbone.lm.parameters())


def test_weights_that_are_shared_take_memory_once(tmp_path):
    pytest.importorskip("peft")
    place, other = write_backbone(tmp_path / "backbone"), write_backbone(tmp_path / "other", layers=3, seed=1)
    plain = AlignedModel.from_backbone(str(place), {})
    shared = AlignedModel.from_backbone(str(place), {"g": LanguageModelConfig(rank=2)})
    separate = AlignedModel.from_backbone(str(place), {"g": LanguageModelConfig(model=str(other), tune="none")})
    alone, lora = cost_of(plain), cost_of(shared)
    assert lora.weights_mib - alone.weights_mib == pytest.approx(4 * lora.added / 2**20)
    theirs = AlignedModel.from_backbone(str(other), {})
    assert cost_of(separate).weights_mib == pytest.approx(alone.weights_mib + cost_of(theirs).weights_mib)
    assert cost_of(plain.backbone.lm) == alone


def test_a_guide_that_does_not_act_costs_nothing_but_memory(systems):
    guided = systems[1][1]
    both, one, none = (cost_of(guided, alpha) for alpha in (None, {"plain": 1.0}, 0.0))
    assert both.executed > one.executed > none.executed == none.parameters
    assert both.weights_mib == none.weights_mib
    assert both.added == none.added > 0


def test_what_would_say_nothing_is_refused(systems, monkeypatch):
    with pytest.raises(DualHeadError, match="each of a name of its own"):
        measure_efficiency([systems[0], systems[0]], [PROMPT] * 2)
    with pytest.raises(DualHeadError, match="exceed the 128 that 'base' reads"):
        measure_efficiency(systems, [PROMPT] * 3, new_tokens=125)
    for wrong in ({"new_tokens": 1}, {"rounds": 0}, {"batch_sizes": ()}, {"batch_sizes": (0,)}):
        with pytest.raises(DualHeadError, match="at least"):
            measure_efficiency(systems, [PROMPT] * 3, **wrong)
    for unlike in ([PROMPT], [PROMPT, PROMPT[:2], PROMPT]):
        with pytest.raises(DualHeadError, match="all are of one length"):
            measure_efficiency(systems, unlike)
    training = tiny_lm("llama").train()
    with pytest.raises(DualHeadError, match=r"model\.eval"):
        measure_efficiency([("t", training, systems[0][2], None)], [PROMPT], new_tokens=4)
    lazy = tiny_lm("llama").eval()
    monkeypatch.setattr(lazy, "generate", lambda ids, **options: ids)
    with pytest.raises(DualHeadError, match="generated 0 tokens instead of 4"):
        measure_efficiency([("lazy", lazy, systems[0][2], None)], [PROMPT], new_tokens=4)
