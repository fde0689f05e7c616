"""The equations of the Dual-Head paper, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from models import steered_lm

from dual_head import RewardHeadConfig, method
from dual_head.backbone.decoder import BackboneShape
from dual_head.guides.reward_head import RewardHead
from dual_head.model import Encoded
from dual_head.model.fusion import fuse
from dual_head.train.step import GuidedLoss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_softmax(z: list[float]) -> list[float]:
    norm = math.log(sum(math.exp(x) for x in z))
    return [x - norm for x in z]


def mix(g: float, z_lm: list[float], z_rm: list[float]) -> list[float]:
    """z = (1 - g) z_LM + g z_RM."""
    return [(1 - g) * lm + g * rm for lm, rm in zip(z_lm, z_rm, strict=True)]


# ---- z = (1 - g) z_LM + g z_RM -----------------------------------------------------------------------------


def test_the_models_logits_are_the_papers_fusion_at_every_position():
    model = steered_lm()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        encoded = model.encode(ids, guides=("dual_head",))
        guide, w_lm = model.guide("dual_head"), model.backbone.lm.lm_head.weight
        w_rm = w_lm + guide.difference.up.weight
        g = encoded.states["dual_head"]["gate_logit"].sigmoid().unsqueeze(-1)
        expected = (1 - g) * (encoded.hidden @ w_lm.T) + g * (encoded.hidden @ w_rm.T)
        torch.testing.assert_close(model(ids).logits, expected)
    assert float((g.max() - g.min()).item()) > 0.05  # the gate is not a constant in disguise


@pytest.mark.parametrize("a", [0.1, 0.5, 0.8])
def test_a_constant_gate_is_genarm_with_weight_a_over_1_minus_a_at_temperature_1_over_1_minus_a(a):
    z_lm, z_rm = torch.randn(4, 11), torch.randn(4, 11)
    weight, temperature = a / (1 - a), 1 / (1 - a)
    genarm = (z_lm.log_softmax(-1) + weight * z_rm.log_softmax(-1)) / temperature
    dual_head = fuse(z_lm, [(a, z_rm - z_lm)])
    torch.testing.assert_close(dual_head.log_softmax(-1), genarm.log_softmax(-1), atol=1e-5, rtol=1e-5)


# ---- L = L_LM + lambda_R L_pref - lambda_G H ---------------------------------------------------------------

# One pair of two-token responses over three words, after a prompt of one. What the backbone says before each
# response token, the reward head's difference from it, the logit of the gate, and the token that came.
CHOSEN = [([1.0, 0.0, -1.0], [0.5, 0.0, 0.0], 0.4, 0), ([0.0, 0.0, 0.0], [0.0, 1.0, 0.0], -1.0, 2)]
REJECTED = [([0.0, 2.0, 0.0], [0.0, -1.0, 0.0], 2.0, 1), ([0.5, 0.5, 0.0], [0.0, 0.0, 3.0], 0.0, 0)]


def plus(z: list[float], d: list[float]) -> list[float]:
    return [x + y for x, y in zip(z, d, strict=True)]


def step(**options) -> dict[str, torch.Tensor]:
    """The trainer's step on the pair: hidden states carry the logits (d = 6), heads pick their halves."""
    hidden, gate = torch.zeros(2, 3, 6), torch.zeros(2, 3)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    for row, response in enumerate((CHOSEN, REJECTED)):
        for t, (z, d, s, token) in enumerate(response):
            hidden[row, t], gate[row, t], ids[row, t + 1] = torch.tensor(z + d), s, token
    guide = RewardHead(RewardHeadConfig(num_heads=1, head_dim=1), BackboneShape(6, 3, 1))
    guide.difference.up.weight.data = torch.cat([torch.zeros(3, 3), torch.eye(3)], 1)
    chosen = method("dual_head").with_options(options)
    backbone = SimpleNamespace(logits=lambda h: h[..., :3], matrix=lambda: torch.eye(3, 6), shape=guide.shape)
    model = SimpleNamespace(
        config=SimpleNamespace(fusion=chosen.fusion),
        guide=lambda name: guide,
        transfer=lambda name: None,
        parameters=guide.parameters,
        encode=lambda ids, guides, **_: Encoded(hidden, {"dual_head": {"hidden": hidden, "gate_logit": gate}}),
        backbone=backbone,
    )
    loss = GuidedLoss(model, chosen, guide="dual_head")
    # The first two positions of each row of three predict the tokens after them.
    at, row = torch.tensor([0, 1, 3, 4]), torch.tensor([0, 0, 1, 1])
    return loss(input_ids=ids, position_ids=None, at=at, labels=ids.flatten()[at + 1], row=row, counts=[2, 2])


def policy_of(z: list[float], d: list[float], s: float, fusion: str = "logits") -> list[float]:
    """log pi over the three words."""
    if fusion == "logits":
        return log_softmax(mix(sigmoid(s), z, plus(z, d)))
    p_lm, p_rm = ([math.exp(x) for x in log_softmax(logits)] for logits in (z, plus(z, d)))
    return [math.log(p) for p in mix(sigmoid(s), p_lm, p_rm)]


def by_hand(*, beta=0.05, lambda_r=1.0, lambda_g=0.01, on="reward", sign=-1, fusion="logits") -> float:
    policy = {
        side: [policy_of(z, d, s, fusion)[token] for z, d, s, token in response]
        for side, response in (("chosen", CHOSEN), ("rejected", REJECTED))
    }
    reward = {
        side: [log_softmax(plus(z, d))[token] for z, d, _, token in response]
        for side, response in (("chosen", CHOSEN), ("rejected", REJECTED))
    }
    l_lm = -sum(policy["chosen"]) / 2
    preferring = reward if on == "reward" else policy
    l_pref = -math.log(sigmoid(beta * (sum(preferring["chosen"]) - sum(preferring["rejected"]))))
    gates = [sigmoid(s) for _, _, s, _ in CHOSEN + REJECTED]
    entropy = sum(-g * math.log(g) - (1 - g) * math.log(1 - g) for g in gates) / 4
    return l_lm + lambda_r * l_pref + sign * lambda_g * entropy


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"beta_r": 0.7}, {"beta": 0.7}),
        ({"lambda_r": 3.0}, {"lambda_r": 3.0}),
        ({"lambda_r": 0.0}, {"lambda_r": 0.0}),
        ({"lambda_g": 2.0}, {"lambda_g": 2.0}),
        ({"lambda_g": 2.0, "gate_entropy": "as_printed"}, {"lambda_g": 2.0, "sign": 1}),
        ({"fusion": "probabilities"}, {"fusion": "probabilities"}),
        ({"preference_on": "policy", "beta_r": 0.7}, {"on": "policy", "beta": 0.7}),
    ],
)
def test_the_full_loss(options, hand):
    assert step(**options)["loss"].item() == pytest.approx(by_hand(**hand), rel=1e-5)


def test_what_is_measured_beside_the_loss():
    measured = step()
    kl = 0.0
    for z, d, s, _ in CHOSEN + REJECTED:
        policy, base = policy_of(z, d, s), log_softmax(z)
        kl += sum(math.exp(p) * (p - b) for p, b in zip(policy, base, strict=True)) / 4
    assert measured["kl"].item() == pytest.approx(kl, rel=1e-4)
    gates = [sigmoid(s) for _, _, s, _ in CHOSEN + REJECTED]
    assert measured["gate"].item() == pytest.approx(sum(gates) / 4)


def test_the_papers_numbers_are_the_defaults():
    chosen = dict(method("dual_head").options())
    assert {path: chosen[path] for path in ("preference.weight", "gate_entropy.weight", "preference.through")} == {
        "preference.weight": 1.0,
        "gate_entropy.weight": 0.01,
        "preference.through": "reward",
    }
    assert method("dual_head").training["learning_rate"] == 5e-5
