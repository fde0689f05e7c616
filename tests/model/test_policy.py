"""z = lm_head(h + sum_k w_k hidden_delta_k) + sum_k w_k logit_delta_k, by hand, in the fewest vocabulary products."""

import math

import pytest
import torch
from models import ARCHITECTURES, HIDDEN, VOCAB, guided_lm
from torch import Tensor

from dual_head import DualHeadError, RewardHeadConfig
from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.guides import Guide, GuideConfig, States
from dual_head.guides.hidden import Hidden, HiddenConfig
from dual_head.guides.layers import weighted_sum
from dual_head.guides.linear import Linear, LinearConfig
from dual_head.guides.reward_head import RewardHead
from dual_head.model.policy import ActiveGuide, distributions
from dual_head.model.transfer import UNMAPPED, Transfer

SHAPE = BackboneShape(hidden_size=2, vocab_size=3, num_layers=1)
LM_HEAD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
H = torch.tensor([[1.0, 2.0]])
BASE = [1.0, 2.0, 3.0]  # of H
RULED_OUT = torch.finfo(torch.float32).min


class Counting:
    """A backbone that is its lm_head, and counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden @ LM_HEAD.T


def voice(guide: Guide, weight: list[list[float]], alpha=1.0, hidden: Tensor = H, **states) -> ActiveGuide:
    """A guide whose one matrix is `weight`."""
    (matrix,) = [p for name, p in guide.named_parameters() if name.endswith("up.weight")]
    matrix.data = torch.tensor(weight)
    return ActiveGuide(guide, {"hidden": hidden, **states}, alpha)


def speaker(alpha=1.0, **states) -> ActiveGuide:
    """logit_delta = [1, 0, -2] at H."""
    return voice(Linear(LinearConfig(), SHAPE), [[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]], alpha, **states)


def editor(alpha=1.0, **states) -> ActiveGuide:
    """hidden_delta = [2, 1] at H, so that lm_head(h + hidden_delta) = [3, 3, 6]."""
    return voice(Hidden(HiddenConfig(rank=None), SHAPE), [[0.0, 1.0], [1.0, 0.0]], alpha, **states)


def policy(*active: ActiveGuide, hidden: Tensor = H, **options) -> Tensor:
    return distributions(Counting(), active, hidden, **options)["policy"]


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


# ---- the one line ------------------------------------------------------------------------------------------


def test_directions_join_the_logits_and_edits_the_hidden_state():
    other = voice(Hidden(HiddenConfig(rank=None), SHAPE), [[4.0, 0.0], [0.0, -2.0]], 0.25)  # hidden_delta = [4, -4]
    z = policy(speaker(2.0), editor(0.5), other)
    h = [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 1 + 0.25 * -4]
    assert z.tolist() == [[h[0] + 2 * 1, h[1] + 2 * 0, h[0] + h[1] + 2 * -2]]


def test_nobody_leaves_the_backbones_own():
    assert policy().tolist() == [BASE]


@pytest.mark.parametrize("make", [speaker, editor])
def test_a_weight_is_alpha_times_the_gate(make):
    s = torch.tensor([math.log(3.0)])  # a gate of 3/4
    torch.testing.assert_close(policy(make(0.5, gate_logit=s)), policy(make(0.375)))
    assert make(torch.tensor([[0.5]]), gate_logit=s).weight[0].tolist() == pytest.approx([0.375])


def test_a_constant_gate_counts_too():
    head = RewardHead(RewardHeadConfig(gate="constant", gate_value=0.25), SHAPE)
    quarter = voice(head, [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0]], 2.0)
    assert policy(quarter).tolist() == [[1 + 2 * 0.25 * 4, 2, 3]]


def test_every_row_has_its_own_strength():
    alpha, hidden = torch.tensor([[0.0], [1.0], [-2.0]]), H.expand(3, 2)
    z = policy(speaker(alpha, hidden=hidden), hidden=hidden)
    assert z.tolist() == [BASE, [1 + 1, 2, 3 - 2], [1 - 2, 2, 3 + 4]]
    z = policy(editor(alpha, hidden=hidden), hidden=hidden)
    assert z.tolist() == [BASE, [3, 3, 6], [1 - 4, 2 - 2, 3 - 6]]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_row_at_alpha_0_keeps_its_bits_beside_one_that_is_steered(architecture, dtype):
    model = guided_lm({"speaks": LinearConfig(), "edits": HiddenConfig(gate="attention")}, architecture).to(dtype)
    ids = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
    base = model(ids, alpha=0.0).logits
    steered = model(ids, alpha=[0.0, 1.0]).logits
    assert torch.equal(steered[0], base[0].to(steered.dtype))
    assert (steered[1] - base[1]).abs().max() > 0.1


def test_a_direction_goes_through_the_map_to_another_backbone():
    vocab_map = torch.tensor([2, UNMAPPED, 0])
    moved = ActiveGuide(**{**speaker(2.0).__dict__, "transfer": Transfer(SHAPE, SHAPE, vocab_map=vocab_map)})
    assert policy(moved).tolist() == [[1 + 2 * -2, 2, 3 + 2 * 1]]


def test_upcast_fuses_in_fp32():
    lm = guided_lm({"g": LinearConfig()}).to(torch.bfloat16)
    hidden = torch.randn(2, 32, dtype=torch.bfloat16)
    backbone: Backbone = lm.backbone
    assert distributions(backbone, [], hidden)["policy"].dtype == torch.bfloat16
    upcast = distributions(backbone, [], hidden, ("base", "policy"), upcast=True)
    assert {x.dtype for x in upcast.values()} == {torch.float32}


# ---- as few products as it takes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "wanted", "calls"),
    [
        ([], ["policy"], 1),
        ([speaker], ["policy"], 1),
        ([speaker, speaker], ["policy", "base"], 1),
        ([editor], ["policy"], 1),
        ([editor] * 5, ["policy"], 1),
        ([editor, speaker, editor], ["policy"], 1),
        ([editor] * 5, ["policy", "base"], 2),
        ([editor, editor], ["base"], 1),
        ([speaker], ["policy", "reward", "delta", "base"], 1),
        ([editor], ["delta"], 0),
    ],
)
def test_the_lm_head_is_applied_only_as_often_as_needed(active, wanted, calls):
    backbone = Counting()
    assert distributions(backbone, [make(0.5) for make in active], H, wanted).keys() == set(wanted)
    assert backbone.calls == calls


@pytest.mark.parametrize("names", ["a", "abcd"])
def test_a_step_of_generation_is_one_product_for_any_number_of_edits(names, monkeypatch):
    model = guided_lm({name: HiddenConfig(rank=2) for name in names})
    calls = []
    own = model.backbone.logits
    monkeypatch.setattr(model.backbone, "logits", lambda hidden: calls.append(hidden.shape) or own(hidden))
    model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=4)
    assert calls == [(1, 1, 32)] * 4


@torch.no_grad()
@pytest.mark.parametrize("new", [3, 1], ids=["of a prompt", "of a step"])
def test_edits_added_up_are_the_sum_of_edits_one_by_one(new, monkeypatch):
    configs = {
        "gated": HiddenConfig(rank=2, gate="attention", init_std=1.0),
        "plain": HiddenConfig(rank=3, init_std=1.0),
    }
    model, added, real = guided_lm(configs), [], weighted_sum
    ids, alpha = torch.tensor([[5, 6, 7], [8, 9, 4]])[:, :new], {"gated": [0.5, 0.0], "plain": [0.0, 2.0]}
    monkeypatch.setattr("dual_head.model.policy.weighted_sum", lambda *given: added.append(real(*given)) or added[-1])
    together = model(ids, alpha=alpha).logits
    assert [x.shape for x in added] == [(2, new, HIDDEN)]
    monkeypatch.setattr("dual_head.model.policy.weighted_sum", lambda *given: None)
    torch.testing.assert_close(together, model(ids, alpha=alpha).logits)


def test_edits_of_other_hidden_states_are_not_added_up(monkeypatch):
    monkeypatch.setattr("dual_head.model.policy.weighted_sum", None)  # nobody may ask for it
    with torch.no_grad():
        one, other = editor(torch.ones(1, 1)), editor(torch.ones(1, 1), hidden=2 * H)
        z = distributions(Counting(), [one, other], H)["policy"]
    assert z.tolist() == [[1 + 2 + 4, 2 + 1 + 2, 3 + 3 + 6]]


# ---- what one guide says -----------------------------------------------------------------------------------


def test_everything_a_speaker_says():
    gate = {"gate_logit": torch.tensor([0.0])}
    said = distributions(Counting(), [speaker(2.0, **gate)], H, ("base", "reward", "delta", "policy"))
    assert {name: x.tolist() for name, x in said.items()} == {
        "base": [BASE],
        "reward": [[1 + 1, 2, 3 - 2]],  # whatever the gate and alpha
        "delta": [[0.5 * 1, 0, 0.5 * -2]],  # whatever alpha
        "policy": [[1 + 2 * 0.5 * 1, 2, 3 + 2 * 0.5 * -2]],
    }


@pytest.mark.parametrize("wanted", [("reward",), ("base", "reward", "delta", "policy")])
def test_everything_an_editor_says(wanted):
    gate = {"gate_logit": torch.tensor([0.0])}
    said = distributions(Counting(), [editor(2.0, **gate)], H, wanted)
    everything = {"base": [BASE], "reward": [[3, 3, 6]], "delta": [[0.5 * 2, 0.5 * 1]], "policy": [[3, 3, 6]]}
    assert {name: x.tolist() for name, x in said.items()} == {name: everything[name] for name in wanted}


@pytest.mark.parametrize("wanted", ["reward", "delta"])
@pytest.mark.parametrize("active", [[speaker, editor], []])
def test_what_is_said_of_one_guide_is_not_asked_of_others(wanted, active):
    with pytest.raises(DualHeadError, match="those of one guide"):
        distributions(Counting(), [make() for make in active], H, (wanted,))


# ---- probabilities -----------------------------------------------------------------------------------------


def test_probabilities_mix_edits_and_directions_by_weight():
    p = policy(speaker(0.5), editor(0.2), fusion="probabilities").exp()
    by_hand = [
        0.3 * b + 0.5 * s + 0.2 * e
        for b, s, e in zip(softmax(BASE), softmax([2, 2, 1]), softmax([3, 3, 6]), strict=True)
    ]
    torch.testing.assert_close(p, torch.tensor([by_hand]))


# ---- candidates --------------------------------------------------------------------------------------------


class Strict(Guide):
    """logit_delta = -base, among the tokens of base logit 2 and more."""

    Config = GuideConfig
    reads_base = True

    def encode(self, features, cache) -> States:
        return {"hidden": features.hidden}

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        return -base

    def candidates(self, states: States, base: Tensor) -> Tensor:
        return base >= 2


def strict(alpha, hidden: Tensor = H, **states) -> ActiveGuide:
    return ActiveGuide(Strict(GuideConfig(), SHAPE), {"hidden": hidden, **states}, alpha)


def test_a_direction_may_read_the_backbones_logits_even_beside_edits():
    z = policy(strict(0.5), editor(1.0))  # 0.5 of -[1, 2, 3], and 1 is no candidate
    assert z.tolist() == [[RULED_OUT, 3 - 1, 6 - 1.5]]


def test_candidates_restrict_only_the_rows_in_which_the_guide_acts():
    alpha, hidden = torch.tensor([[0.0], [0.5], [-0.5]]), H.expand(3, 2)
    z = policy(strict(alpha, hidden=hidden), hidden=hidden)
    assert z.tolist() == [BASE, [RULED_OUT, 1, 1.5], [RULED_OUT, 3, 4.5]]


def test_candidates_restrict_a_mixture_too():
    alpha, hidden = torch.tensor([[0.0], [0.5]]), H.expand(2, 2)
    p = policy(strict(alpha, hidden=hidden), hidden=hidden, fusion="probabilities").exp()
    torch.testing.assert_close(p[0], torch.tensor(softmax(BASE)))
    flat = softmax([0, 0, 0])
    by_hand = [0.0, *(0.5 * b + 0.5 * f for b, f in zip(softmax(BASE)[1:], flat[1:], strict=True))]
    torch.testing.assert_close(p[1], torch.tensor(by_hand))


def test_the_base_itself_is_never_restricted():
    said = distributions(Counting(), [strict(1.0)], H, ("base", "policy"))
    assert said["base"].tolist() == [BASE]
    assert said["policy"].tolist() == [[RULED_OUT, 0, 0]]


def test_what_is_ruled_out_keeps_divergences_finite():
    said = distributions(Counting(), [strict(1.0)], H, ("base", "policy"))
    policy, base = said["policy"].log_softmax(-1), said["base"].log_softmax(-1)
    assert policy[0, 0].exp() == 0
    kl = (policy.exp() * (policy - base)).sum()
    by_hand = sum(0.5 * (math.log(0.5) - math.log(b)) for b in softmax(BASE)[1:])
    assert kl.item() == pytest.approx(by_hand)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize(
    "guides",
    [
        {"a": RewardHeadConfig(num_heads=2, head_dim=4)},
        {"a": HiddenConfig()},
        {"a": LinearConfig()},
        {"a": HiddenConfig(rank=2), "b": HiddenConfig(rank=3)},
    ],
    ids=["gated", "hidden", "linear", "two at once"],
)
def test_a_row_at_alpha_0_keeps_its_bits_beside_one_that_is_no_number(guides, value):
    model, ids = guided_lm(guides), torch.tensor([[3, 4, 5], [3, 4, 5]])
    for parameter in model.guides.parameters():
        torch.nn.init.constant_(parameter, value)
    with torch.no_grad():
        logits = model(ids, alpha=[0.0, 1.0]).logits
        assert torch.equal(logits[0], model.backbone.lm(ids).logits[0])
    assert not logits[1].isfinite().all()
