"""Where the seed contradicts itself: the check that ours passes, and that the seed's version fails.

Numbers are those of docs/provenance/differences.md. Every seed's version is written out here as a small local function.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from models import BOS, HIDDEN, LAYERS, VOCAB, steered_lm, tiny_lm
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache

from dual_head import DualHeadModel, RewardHeadConfig, method
from dual_head.backbone.features import Features
from dual_head.data.collate import PairCollator
from dual_head.guides.reward_head import CausalGate
from dual_head.losses.gate_entropy import GateEntropy, binary_entropy
from dual_head.losses.preference import Preference
from dual_head.ops.token_scores import Scored
from dual_head.train.step import GuidedLoss

BATCH = PairCollator(0)([{"prompt_ids": [BOS, 5, 6], "chosen_ids": [8, 9, 2], "rejected_ids": [11, 2]}])

# ---- D1: the printed sign closes or opens gates for good; ours keeps them apart from 0 and 1 ----------------


def gates_after_steps(loss_of, steps: int = 400) -> tuple[Tensor, Tensor]:
    """Gates of a random gate before and after gradient steps on nothing but its entropy."""
    torch.manual_seed(0)
    gate, hidden = CausalGate(HIDDEN, 2, 4), torch.randn(1, 12, HIDDEN)
    gate.output.weight.data.mul_(8)
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.05)  # with more, rounding decides where gates end
    before = gate(Features(hidden), None).sigmoid().detach()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(gate(Features(hidden), None)[0]).backward()
        optimizer.step()
    return before, gate(Features(hidden), None).sigmoid().detach()


def ours(form: str):
    row = torch.tensor([0] * 6 + [1] * 6)
    return lambda s: GateEntropy(form=form)(Scored({"gate_logit": s}, row, 1)).loss.mean()


def seeds_gate_loss(s: Tensor) -> Tensor:
    """L = -lambda_G E[a ln a + (1 - a) ln(1 - a)], as printed."""
    a = s.sigmoid()
    return -(a * a.log() + (1 - a) * (1 - a).log()).mean()


def keeps_gates_apart_from_0_and_1(loss_of) -> bool:
    before, after = gates_after_steps(loss_of)
    return bool((after - 0.5).abs().mean() < 0.5 * (before - 0.5).abs().mean())


@pytest.mark.heavy
def test_d1_the_default_opens_gates_and_the_printed_sign_collapses_them():
    assert keeps_gates_apart_from_0_and_1(ours("maximise"))
    for collapsing in (ours("as_printed"), seeds_gate_loss):
        assert not keeps_gates_apart_from_0_and_1(collapsing)
        _, after = gates_after_steps(collapsing)
        assert torch.minimum(after, 1 - after).mean() < 0.05


# ---- D2: entropy of a gate in bf16 --------------------------------------------------------------------------


def seeds_entropy(s: Tensor) -> Tensor:
    a = torch.sigmoid(s).clamp(1e-8, 1 - 1e-8)
    return -(a * torch.log(a) + (1 - a) * torch.log(1 - a))


def is_right_in_bf16(entropy, at: float) -> bool:
    """Value and gradient against float64: H(g) and dH/ds = -s g (1 - g)."""
    s = torch.tensor(at, dtype=torch.bfloat16, requires_grad=True)
    h = entropy(s)
    h.backward()
    g = 1 / (1 + math.exp(-at))
    value = math.log1p(math.exp(at)) - at * g
    return h.item() == pytest.approx(value, rel=0.02) and s.grad.item() == pytest.approx(-at * g * (1 - g), rel=0.02)


@pytest.mark.parametrize("s", [6.25, 8.0, 10.0])
def test_d2_entropy_of_an_open_gate_is_right_in_bf16(s):
    assert is_right_in_bf16(binary_entropy, s)
    assert is_right_in_bf16(binary_entropy, -s)
    assert not is_right_in_bf16(seeds_entropy, s)
    assert seeds_entropy(torch.tensor(s, dtype=torch.bfloat16)).isnan()


# ---- D3: the gate is causal, and decoding one token at a time changes nothing -------------------------------


def our_gate(gate: CausalGate, hidden: Tensor) -> Tensor:
    return gate(Features(hidden), None)


def seeds_gate(gate: CausalGate, hidden: Tensor) -> Tensor:
    """Attention without a mask over many tokens; none at all over one."""
    q, k, v = (gate._split(project(hidden)) for project in (gate.query, gate.key, gate.value))
    mixed = v if hidden.shape[1] == 1 else F.scaled_dot_product_attention(q, k, v)
    return gate.output(mixed.transpose(1, 2).flatten(2)).squeeze(-1)


def random_gate() -> CausalGate:
    gate = CausalGate(HIDDEN, 2, 4)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.5)
    return gate


@torch.no_grad()
def later_tokens_leave_earlier_gates_alone(gate_of) -> bool:
    torch.manual_seed(0)
    gate, hidden = random_gate(), torch.randn(1, 6, HIDDEN)
    changed = hidden.clone()
    changed[:, 4:] += 1
    return torch.allclose(gate_of(gate, hidden)[:, :4], gate_of(gate, changed)[:, :4], atol=1e-5)


def test_d3_a_later_token_does_not_change_an_earlier_gate():
    assert later_tokens_leave_earlier_gates_alone(our_gate)
    assert not later_tokens_leave_earlier_gates_alone(seeds_gate)


@torch.no_grad()
def gates_one_by_one(model: DualHeadModel, ids: Tensor) -> Tensor:
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    steps = [
        model.encode(ids[:, t : t + 1], past_key_values=cache, guides=("dual_head",)).states["dual_head"]["gate_logit"]
        for t in range(ids.shape[1])
    ]
    return torch.cat(steps, 1)


@torch.no_grad()
def test_d3_decoding_one_token_at_a_time_gives_the_gates_of_one_pass():
    model, ids = steered_lm(), torch.tensor([[BOS, 5, 6, 7, 8, 9]])
    full = model.encode(ids, guides=("dual_head",))
    gates = full.states["dual_head"]["gate_logit"]
    torch.testing.assert_close(gates_one_by_one(model, ids), gates, atol=1e-4, rtol=1e-4)
    gate, hidden = model.guide("dual_head").causal_gate, full.hidden
    seeds_steps = torch.cat([seeds_gate(gate, hidden[:, t : t + 1]) for t in range(6)], 1)
    assert not torch.allclose(seeds_steps, seeds_gate(gate, hidden), atol=0.1)


# ---- D5: the LM head is the backbone's own, and no copy of it is stored -------------------------------------


class SeedsHeads(nn.Module):
    """Both heads are new parameters, the gate beside them."""

    def __init__(self, lm_head: Tensor):
        super().__init__()
        self.lm_head = nn.Parameter(lm_head.clone())
        self.rm_head = nn.Parameter(torch.zeros_like(lm_head))
        self.gate = CausalGate(HIDDEN, 2, 8)


def stores_a_copy_of(lm_head: Tensor, state: dict[str, Tensor]) -> bool:
    return any(x.shape == lm_head.shape and torch.equal(x, lm_head) for x in state.values())


def test_d5_stored_parameters_are_the_difference_and_the_gate(tmp_path):
    model = steered_lm()
    lm_head = model.backbone.lm.lm_head.weight
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    width = 2 * 8
    assert sum(x.numel() for x in stored.values()) == HIDDEN * VOCAB + 3 * HIDDEN * width + width + 1
    assert not stores_a_copy_of(lm_head, stored)
    seeds = SeedsHeads(lm_head).state_dict()
    assert stores_a_copy_of(lm_head, seeds)
    assert sum(x.numel() for x in seeds.values()) == 2 * HIDDEN * VOCAB + 3 * HIDDEN * width + width + 1


# ---- D6: alpha = 0 is the backbone, and the LM head does not train ------------------------------------------


class SeedsPolicy(nn.Module):
    """An LM head learnt anew from N(0, .02), trained beside the reward head."""

    def __init__(self):
        super().__init__()
        self.lm_head, self.rm_head = (nn.Parameter(0.02 * torch.randn(VOCAB, HIDDEN)) for _ in range(2))

    def forward(self, hidden: Tensor, gate: float) -> Tensor:
        return (1 - gate) * hidden @ self.lm_head.T + gate * hidden @ self.rm_head.T


def test_d6_alpha_0_is_the_backbone_before_and_after_training():
    own = tiny_lm("llama").eval()
    ids = torch.tensor([[BOS, 5, 6, 7]])
    with torch.no_grad():
        expected = own(ids).logits
    model = steered_lm()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    GuidedLoss(model, method("dual_head"), guide="dual_head")(**BATCH)["loss"].backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(ids, alpha=0).logits, expected)
        assert not torch.allclose(model(ids, alpha=1).logits, expected, atol=0.1)
    assert model.backbone.lm.lm_head.weight.grad is None
    hidden = model.backbone(ids)[0].last_hidden_state
    seeds = SeedsPolicy()
    assert not torch.allclose(seeds(hidden, 0.0), expected, atol=0.1)
    seeds(hidden, 0.5).log_softmax(-1)[..., 5].mean().backward()
    assert seeds.lm_head.grad.any()


# ---- D8: beta once, response tokens only --------------------------------------------------------------------


def seeds_preference(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """beta scales the reward, and again the difference of rewards; sums run over prompt and response."""
    return -F.logsigmoid(beta * (beta * chosen.sum() - beta * rejected.sum()))


def our_preference(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    row = torch.tensor([0] * len(chosen) + [1] * len(rejected))
    logps = torch.cat([chosen, rejected])
    return Preference(beta=beta)(Scored({"reward_logps": logps, "base_logps": logps}, row, 1)).loss[0]


def applies_beta_once(preference) -> bool:
    loss = preference(torch.tensor([-1.0, -2.0]), torch.tensor([-9.0]), 0.5).item()
    return loss == pytest.approx(math.log(1 + math.exp(-0.5 * ((-1 - 2) - -9))))


def test_d8_beta_is_applied_once():
    assert applies_beta_once(our_preference)
    assert not applies_beta_once(seeds_preference)


def learns_from_long_responses(preference, beta: float) -> bool:
    """128 tokens, 0.3 nats apart each: is there any slope left, next to that of beta?"""
    chosen = torch.full((128,), -1.0, requires_grad=True)
    preference(chosen, torch.full((128,), -1.3), beta).backward()
    return bool(chosen.grad.abs().max() > 0.01 * beta)


def test_d8_a_beta_of_1_saturates_on_long_responses_and_ours_does_not():
    default = next(value for path, value in method("dual_head").options() if path == "preference.beta")
    assert default == 0.05
    assert learns_from_long_responses(our_preference, default)
    assert not learns_from_long_responses(our_preference, 1.0)
    assert not learns_from_long_responses(seeds_preference, 1.0)


def test_d8_only_response_tokens_are_summed():
    """The sums are those of the response's log-probabilities, computed one by one from the full logits."""
    model = steered_lm()
    with torch.no_grad():
        reward = GuidedLoss(model, method("dual_head"), guide="dual_head")(**BATCH)
        encoded = model.encode(BATCH["input_ids"], guides=("dual_head",))
        base = model.backbone.logits(encoded.hidden)
        logps = (base + model.guide("dual_head").logit_delta(encoded.states["dual_head"], base)).log_softmax(-1)
    chosen = sum(logps[0, t - 1, BATCH["input_ids"][0, t]] for t in (3, 4, 5))  # after a prompt of three
    with_prompt = chosen + sum(logps[0, t - 1, BATCH["input_ids"][0, t]] for t in (1, 2))
    assert reward["reward_chosen"].item() == pytest.approx(0.05 * chosen.item(), rel=1e-4)
    assert reward["reward_chosen"].item() != pytest.approx(0.05 * with_prompt.item(), rel=1e-2)


# ---- D10: a fixed gate is one linear head -------------------------------------------------------------------


def test_d10_a_fixed_gate_is_one_linear_head():
    model = steered_lm(gate="constant", gate_value=0.3)
    ids = torch.tensor([[BOS, 5, 6]])
    w_lm, d = model.backbone.lm.lm_head.weight, model.guide("dual_head").difference.up.weight
    with torch.no_grad():
        hidden = model.backbone(ids)[0].last_hidden_state
        merged = hidden @ ((1 - 0.3) * w_lm + 0.3 * (w_lm + d)).T
        torch.testing.assert_close(model(ids).logits, merged, atol=1e-5, rtol=1e-5)
    assert model.config.get_text_config().num_hidden_layers == LAYERS  # and needs no cache of its own


def test_the_default_guide_is_the_one_the_errata_describe():
    assert (RewardHeadConfig().num_heads, RewardHeadConfig().head_dim, RewardHeadConfig().rank) == (8, 48, None)
