"""A trace says of every new token what guidance did to it."""

import math

import pytest
import torch
from models import BOS, EOS, PAD, VOCAB, steered_lm
from transformers import GenerationConfig

from dual_head import AlignedModel
from dual_head.model.trace import TOP, trace_sequences

PROMPTS = torch.tensor([[PAD, BOS, 5], [BOS, 6, 7]])
MASK = (PROMPTS != PAD).long()


def trace(model: AlignedModel, sequences, *, alpha=None, eos=EOS, prompts=PROMPTS):
    acting = model.resolve_alpha(alpha, len(prompts))
    return trace_sequences(model, sequences, (prompts != PAD).long(), alpha=acting, eos_token_id=eos)


def continued(*rows: list[int]) -> torch.Tensor:
    return torch.cat([PROMPTS, torch.tensor(rows)], 1)


@torch.no_grad()
def log_probabilities(model: AlignedModel, ids: list[int], alpha) -> list[list[float]]:
    return model(torch.tensor([ids]), alpha=alpha).logits[0].double().log_softmax(-1).tolist()


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # relative and absolute positions
@pytest.mark.parametrize("alpha", [1.0, [0.5, 1.0]])
def test_log_probabilities_and_kl_are_those_of_the_logits_token_by_token(fusion, architecture, alpha):
    model = steered_lm(architecture, fusion=fusion)
    traces = trace(model, continued([10, 11, 12], [13, 14, 15]), alpha=alpha)
    strengths = alpha if isinstance(alpha, list) else [alpha] * 2
    rows = [([BOS, 5], [10, 11, 12]), ([BOS, 6, 7], [13, 14, 15])]  # without the padding
    for (prompt, new), traced, strength in zip(rows, traces, strengths, strict=True):
        policy = log_probabilities(model, prompt + new, strength)
        base = log_probabilities(model, prompt + new, 0)
        assert [token.token_id for token in traced] == new
        for i, token in enumerate(traced):
            p, b = policy[len(prompt) + i - 1], base[len(prompt) + i - 1]
            assert token.policy_logp == pytest.approx(p[new[i]], abs=1e-4)
            assert token.base_logp == pytest.approx(b[new[i]], abs=1e-4)
            assert token.kl == pytest.approx(sum(math.exp(x) * (x - y) for x, y in zip(p, b, strict=True)), abs=1e-4)
            changes = [math.exp(x) - math.exp(y) for x, y in zip(p, b, strict=True)]
            ranked = sorted(range(VOCAB), key=changes.__getitem__)
            assert [v for v, _ in token.promoted] == ranked[: -TOP - 1 : -1]
            assert [v for v, _ in token.demoted] == ranked[:TOP]
            assert [c for _, c in token.promoted] == pytest.approx([changes[v] for v, _ in token.promoted], abs=1e-5)
            assert [c for _, c in token.demoted] == pytest.approx([changes[v] for v, _ in token.demoted], abs=1e-5)


def test_gates_are_the_models_own():
    model = steered_lm()
    sequences = continued([10, 11], [13, 14])
    with torch.no_grad():
        encoded = model.encode(sequences[1:], guides=("dual_head",))
    logits = encoded.states["dual_head"]["gate_logit"][0, 2:4]
    gates = [token.gates["dual_head"] for token in trace(model, sequences)[1]]
    assert gates == pytest.approx(logits.sigmoid().tolist(), abs=1e-4)


def test_a_constant_gate_is_reported_as_what_it_is():
    traces = trace(steered_lm(gate="constant", gate_value=0.25), continued([10, 11], [13, 14]))
    assert [token.gates for token in traces[0]] == [{"dual_head": 0.25}] * 2


def test_at_alpha_0_nothing_happened():
    for token in trace(steered_lm(), continued([10], [13]), alpha=0)[0]:
        assert (token.kl, token.gates, token.policy_logp) == (0, {}, token.base_logp)


def test_a_trace_ends_with_its_first_end_of_sequence():
    sequences = continued([10, EOS, PAD, PAD], [13, 14, 15, 16])
    assert [len(t) for t in trace(steered_lm(), sequences)] == [2, 4]
    assert [len(t) for t in trace(steered_lm(), sequences, eos=[99, 14])] == [4, 2]
    assert [len(t) for t in trace(steered_lm(), sequences, eos=None)] == [4, 4]


def test_no_new_tokens_have_an_empty_trace():
    assert trace(steered_lm(), PROMPTS) == [[], []]


def test_long_sequences_are_traced_in_chunks_without_a_seam():
    model = steered_lm()
    new = [3 + i % 90 for i in range(100)]
    (long,) = trace(model, torch.tensor([[BOS, 5, *new]]), prompts=torch.tensor([[BOS, 5]]))
    policy = log_probabilities(model, [BOS, 5, *new], 1.0)
    assert [t.token_id for t in long] == new
    assert [t.policy_logp for t in long] == pytest.approx([policy[1 + i][v] for i, v in enumerate(new)], abs=1e-4)


# ---- through generate --------------------------------------------------------------------------------------


def test_several_sequences_of_one_prompt_keep_their_prompts_strength():
    model = steered_lm()
    output, traces = model.generate(
        PROMPTS,
        attention_mask=MASK,
        alpha=[0.0, 1.0],
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=3,
        do_sample=False,
        return_trace=True,
    )
    assert len(traces) == len(output) == 4
    assert [all(token.kl < 1e-6 for token in row) for row in traces] == [True, True, False, False]


@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": 17, "max_new_tokens": 6},
        {"generation_config": GenerationConfig(eos_token_id=17, max_new_tokens=6, pad_token_id=PAD)},
        {"generation_config": GenerationConfig(max_new_tokens=6, pad_token_id=PAD)},  # the model's own EOS
    ],
    ids=["argument", "config", "config without one"],
)
def test_a_trace_ends_where_generation_did_wherever_the_end_was_said(options):
    model = steered_lm()
    said = "eos_token_id" in options or options["generation_config"].eos_token_id
    end = 17 if said else EOS

    def force(ids, scores):
        """Row 0 ends after two tokens, row 1 never does."""
        scores[:, [end, EOS, 17]] = -torch.inf
        if ids.shape[1] == PROMPTS.shape[1] + 1:
            scores[0, end] = 1e9
        return scores

    _, traces = model.generate(
        PROMPTS, attention_mask=MASK, logits_processor=[force], do_sample=False, return_trace=True, **options
    )
    assert [len(row) for row in traces] == [2, 6]
