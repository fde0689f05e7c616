"""How far guidance moved finished replies: what a trace says token by token, summed."""

import pytest
import torch
from models import EOS, PAD, guided_lm

from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig
from dual_head.model.alpha import LinearDecay
from dual_head.model.score import reply_scalars
from dual_head.ops.token_scores import Head, Tokens, reduce_tokens

PROMPTS = torch.tensor([[PAD, PAD, 5], [6, 7, 8], [PAD, 9, 10]])
MASK = (PROMPTS != PAD).long()
NEEDS = ("kl", "policy_logps", "base_logps", "moved")


def two_guides(architecture: str = "llama", fusion: str = "logits"):
    return guided_lm({"speaks": LinearConfig(), "edits": HiddenConfig(gate="attention")}, architecture, fusion=fusion)


def replies(model, alpha):
    """Sampled replies of 2, 6 and 6 tokens, and their traces."""

    def end_row_0_after_two(ids, scores):
        scores[:, EOS] = -torch.inf
        if ids.shape[1] == PROMPTS.shape[1] + 1:
            scores[0, EOS] = 1e9
        return scores

    torch.manual_seed(0)
    sequences, traces = model.generate(
        PROMPTS,
        attention_mask=MASK,
        alpha=alpha,
        do_sample=True,
        max_new_tokens=6,
        eos_token_id=EOS,
        logits_processor=[end_row_0_after_two],
        return_trace=True,
    )
    assert [len(trace) for trace in traces] == [2, 6, 6]
    return sequences, traces


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # relative and absolute positions
@pytest.mark.parametrize(
    ("fusion", "alpha"),
    [
        ("logits", {"speaks": [1.0, -0.5, 0.0], "edits": [0.5, 2.0, 0.0]}),
        ("logits", {"edits": [0.0, 1.0, 2.0]}),
        ("logits", {"speaks": LinearDecay(2.0, 0.0, 4), "edits": [1.0, 0.0, -1.0]}),
        ("probabilities", {"speaks": [0.5, 0.1, 0.0], "edits": [0.5, 0.4, 0.3]}),
    ],
)
def test_reply_scalars_are_the_sums_over_traces(architecture, fusion, alpha):
    model = two_guides(architecture, fusion)
    sequences, traces = replies(model, alpha)
    lengths = torch.tensor([len(trace) for trace in traces])
    summed = reply_scalars(model, sequences, MASK, alpha=alpha, lengths=lengths, needs=NEEDS)
    assert summed.keys() == set(NEEDS)
    for name, part in (("kl", "kl"), ("policy_logps", "policy_logp"), ("base_logps", "base_logp")):
        by_trace = [sum(getattr(token, part) for token in trace) for trace in traces]
        assert summed[name].tolist() == pytest.approx(by_trace, abs=1e-3), name
    assert summed["kl"].max() > 0.1


def test_what_moved_is_half_the_change_of_all_probabilities():
    model, alpha = two_guides(), {"speaks": [1.0, 0.0, -0.5], "edits": [0.5, 0.0, 1.0]}
    sequences, traces = replies(model, alpha)
    lengths = torch.tensor([len(trace) for trace in traces])
    moved = reply_scalars(model, sequences, MASK, alpha=alpha, lengths=lengths, needs=("moved",))["moved"]
    for row, trace in enumerate(traces):
        prompt = PROMPTS[row][MASK[row].bool()]
        ids = torch.cat([prompt, sequences[row, 3 : 3 + len(trace)]])[None]
        own = {name: values[row] for name, values in alpha.items()}
        with torch.no_grad():
            change = model(ids, alpha=own).logits.softmax(-1) - model(ids, alpha=0).logits.softmax(-1)
        by_hand = change[0, len(prompt) - 1 : -1].abs().sum().item() / 2
        assert moved[row].item() == pytest.approx(by_hand, abs=1e-4)
    assert moved[1] == 0
    assert moved[0] > 0.1


def test_what_moved_by_hand():
    """From [1/2, 1/4, 1/4] to [1/8, 5/8, 1/4], three eighths went from the first word to the second."""
    tokens = Tokens(torch.zeros(1, 3), {}, torch.tensor([0]), torch.tensor([0]))
    base, policy = (torch.tensor([p]).log() for p in ([1 / 2, 1 / 4, 1 / 4], [1 / 8, 5 / 8, 1 / 4]))
    said = {"base": base + 7.0, "policy": policy - 3.0}  # logits are known up to a constant
    scalars = reduce_tokens(tokens, Head(lambda *_: said, lambda z, _: z), ["moved"])
    assert scalars["moved"].item() == pytest.approx(3 / 8)


def test_the_length_of_delta_by_hand():
    tokens = Tokens(torch.zeros(2, 3), {}, torch.tensor([0, 0]), torch.tensor([0, 0]))
    said = {"delta": torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.5]])}
    scalars = reduce_tokens(tokens, Head(lambda *_: said, lambda z, _: z), ["delta_norm"])
    assert scalars["delta_norm"].tolist() == [1 + 4 + 9, 0.25]


def test_where_no_guide_acts_nothing_is_away_from_the_backbone():
    model = two_guides()
    sequences, _ = replies(model, 0.0)
    away = reply_scalars(model, sequences, MASK, alpha=0.0, lengths=torch.tensor([2, 6, 6]), needs=("kl", "moved"))
    assert away["kl"].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert away["moved"].tolist() == [0, 0, 0]


def test_an_empty_reply_sums_to_nothing():
    model = two_guides()
    sequences, _ = replies(model, 1.0)
    some = reply_scalars(model, sequences, MASK, alpha=1.0, lengths=torch.tensor([0, 6, 0]))["kl"]
    assert (some == 0).tolist() == [True, False, True]


def test_scalars_carry_no_gradient():
    model = two_guides()
    sequences, _ = replies(model, 1.0)
    assert not reply_scalars(model, sequences, MASK, alpha=1.0, lengths=torch.tensor([2, 6, 6]))["kl"].requires_grad
