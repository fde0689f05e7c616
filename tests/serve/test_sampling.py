"""Next tokens by each row's own settings: against transformers' processors, and by hand."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dual_head.errors import DualHeadError
from dual_head.serve import sampling
from dual_head.serve.types import Sampling

VOCABULARY, ROWS = 2000, 5
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    """Some flat, some peaked."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 1.0, 2.0, 5.0, 20.0])[:, None]
    return torch.randn(ROWS, VOCABULARY, generator=generator) * spread


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(sampling, "gumbel", lambda seeds, positions, size: torch.zeros(len(seeds), size))


def scores(logits, *settings):
    return sampling.scores_of(logits, list(settings), list(range(len(logits))), torch.arange(len(logits)))


def edits_after(settings: Sampling, prompt: list[int], reply: list[int]) -> sampling.LogitEdits:
    """What is known of a row whose reply has come so far."""
    edits = sampling.edits_of(settings, prompt)
    for token in reply if edits else ():
        edits.add(token)
    return edits


def kept_of(expected: torch.Tensor, actual: torch.Tensor) -> None:
    """The same tokens are left, and of them the same distribution."""
    assert torch.equal(expected.isinf(), actual.isinf())
    torch.testing.assert_close(expected.softmax(-1), actual.softmax(-1), rtol=1e-5, atol=1e-7)


WARPERS = {
    "temperature": (Sampling(temperature=0.3), [TemperatureLogitsWarper(0.3)]),
    "top_k": (Sampling(top_k=7), [TopKLogitsWarper(7)]),
    "top_p": (Sampling(top_p=0.8), [TopPLogitsWarper(0.8)]),
    "top_p of one token": (Sampling(top_p=1e-6), [TopPLogitsWarper(1e-6)]),
    "min_p": (Sampling(min_p=0.1), [MinPLogitsWarper(0.1)]),
    "all": (
        Sampling(temperature=2.0, top_k=900, top_p=0.9, min_p=0.01),
        [TemperatureLogitsWarper(2.0), TopKLogitsWarper(900), TopPLogitsWarper(0.9), MinPLogitsWarper(0.01)],
    ),
}


@pytest.mark.parametrize("name", WARPERS)
def test_each_option_leaves_the_tokens_that_transformers_leaves(logits, no_noise, name):
    settings, warpers = WARPERS[name]
    expected = LogitsProcessorList(warpers)(torch.zeros(ROWS, 1, dtype=torch.long), logits.clone())
    kept_of(expected, scores(logits, *[settings] * ROWS))


def test_a_nucleus_wider_than_the_first_candidates_is_found(logits, no_noise, monkeypatch):
    wide = scores(logits, *[Sampling(top_p=0.99)] * ROWS)
    assert (wide[0].isfinite().sum() > sampling.CANDIDATES).item()
    monkeypatch.setattr(sampling, "CANDIDATES", 2)
    assert torch.equal(wide, scores(logits, *[Sampling(top_p=0.99)] * ROWS))


def test_rows_of_a_batch_keep_their_own_settings(logits, no_noise):
    settings = [GREEDY, Sampling(top_k=3), Sampling(top_p=0.5), Sampling(min_p=0.2), Sampling(temperature=0.5, top_k=9)]
    together = scores(logits, *settings)
    assert torch.equal(together[0], logits[0])
    for i in range(1, ROWS):
        assert torch.equal(together[i], scores(logits[i : i + 1], settings[i])[0])


def test_greedy_rows_get_the_very_logits(logits):
    assert scores(logits, *[GREEDY] * ROWS) is logits
    assert sampling.edited(logits, [sampling.edits_of(GREEDY, [3, 4])] * ROWS) is logits


def test_repetition_is_penalised_as_transformers_does(logits):
    history = torch.tensor([[4, 9, 9, 17, 5, 4]])
    row = logits[2:3]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(history, row.clone())
    edits = edits_after(replace(GREEDY, repetition_penalty=1.7), history[0, :4].tolist(), history[0, 4:].tolist())
    assert torch.equal(expected, sampling.edited(row, [edits]))


def test_frequency_counts_the_reply_and_presence_does_not():
    edits = edits_after(replace(GREEDY, frequency_penalty=0.5, presence_penalty=0.25), [0, 1], [2, 1, 2, 2])
    assert sampling.edited(torch.zeros(1, 4), [edits]).tolist() == [[0.0, -0.75, -1.75, 0.0]]


def test_a_prompt_is_read_only_where_repetition_is_penalised():
    prompt = list(range(1000))
    assert edits_after(replace(GREEDY, frequency_penalty=0.5), prompt, [7, 7]).tokens.tolist() == [7]
    assert len(edits_after(replace(GREEDY, repetition_penalty=1.1), prompt, [7]).tokens) == 1000
    assert len(edits_after(replace(GREEDY, logit_bias={3: 1.0}), prompt, [7]).tokens) == 0


def test_edits_have_the_bits_of_edits_one_by_one(logits):
    settings = [
        replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.1, presence_penalty=0.7),
        GREEDY,
        replace(GREEDY, frequency_penalty=-0.3, logit_bias={5: 0.1, 9: -3.0}),
        replace(GREEDY, repetition_penalty=0.9),
        replace(GREEDY, logit_bias={1999: 1e-3}),
    ]
    prompts = [[i, i + 1, i, 5 * i] for i in range(ROWS)]
    replies = [[9, i + 1, 5, 9, 9, 1999] for i in range(ROWS)]
    expected = logits.clone()
    for i, s in enumerate(settings):
        for token in {*prompts[i], *replies[i]}:
            count, z = replies[i].count(token), expected[i, token]
            z = z / s.repetition_penalty if z > 0 else z * s.repetition_penalty
            expected[i, token] = z - (s.frequency_penalty * count + s.presence_penalty * (count > 0))
        for token, bias in s.logit_bias.items():
            expected[i, token] += bias
    edits = [edits_after(*row) for row in zip(settings, prompts, replies, strict=True)]
    assert torch.equal(sampling.edited(logits, edits), expected)
    assert not torch.equal(logits, expected)


def test_logit_bias_adds_as_a_bias_of_sequences_of_one_does(logits):
    bias = {3: 5.0, 1999: -100.0}
    expected = SequenceBiasLogitsProcessor([[[t], b] for t, b in bias.items()])(torch.zeros(1, 1).long(), logits[:1])
    changed = sampling.edited(logits[:2], [sampling.edits_of(replace(GREEDY, logit_bias=bias), []), None])
    torch.testing.assert_close(changed[:1], expected)
    assert torch.equal(changed[1], logits[1])


def test_log_probabilities_are_those_of_the_guided_logits(logits):
    expected = logits.log_softmax(-1)
    tokens = logits.argmax(-1)
    torch.testing.assert_close(sampling.logprobs(logits, tokens), expected.amax(-1))
    tops = sampling.top_logprobs(logits, [0, 1, 3, 0, 2])
    assert [len(top) for top in tops] == [0, 1, 3, 0, 2]
    best = expected[2].topk(3)
    assert [token for token, _ in tops[2]] == best.indices.tolist()
    assert [value for _, value in tops[2]] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_samples_follow_the_distribution():
    # 40,000 draws of p = (.5, .25, .15, .1): each share within five standard errors, 5 sqrt(p (1 - p) / n) < .0125.
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    count = 40_000
    noise = sampling.gumbel([7] * count, torch.arange(count), 4)
    shares = (p.log() + noise).argmax(-1).bincount(minlength=4) / count
    torch.testing.assert_close(shares, p, rtol=0, atol=0.0125)


def test_unlikely_tokens_keep_their_chance():
    # One token of 1 - 1e-3 and a thousand of 1e-6 each: of 200,000 draws 200 are rare, give or take 5 sqrt(200) = 71.
    z = torch.full((1001,), math.log(1e-6))
    z[0] = math.log(1 - 1e-3)
    rare = sum(
        int(((z + sampling.gumbel([seed] * 2000, torch.arange(2000), 1001)).argmax(-1) > 0).sum())
        for seed in range(100)
    )
    assert 129 <= rare <= 271


def test_noise_of_seeds_positions_and_tokens_is_unrelated():
    noise = sampling.gumbel([0, 1, 0, 2**40], torch.tensor([0, 0, 1, 0]), 20_000)
    related = torch.corrcoef(noise).fill_diagonal_(0).abs().max()
    assert related < 0.03  # four standard errors of 20,000 pairs
    shifted = torch.corrcoef(torch.stack([noise[0, 1:], noise[0, :-1]]))[0, 1].abs()
    assert shifted < 0.03
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)


def test_the_only_candidate_is_chosen_whatever_its_noise():
    seed, position, token = 1, 36, 8518  # whose hash is one of the 64 largest of 2^31
    noise = sampling.gumbel([seed], torch.tensor([position]), token + 1)
    assert noise[0, token].item() == noise.amin().item() == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)
    only = torch.full((1, token + 1), sampling.NEVER).index_fill(1, torch.tensor([token]), 3.0)
    chosen = sampling.scores_of(only, [Sampling()], [seed], torch.tensor([position])).argmax(-1)
    assert chosen.item() == token


def test_noise_of_a_row_is_the_same_alone_and_in_a_crowd():
    crowd = sampling.gumbel([5, 11, 2**62], torch.tensor([9, 3, 100]), 500)
    assert torch.equal(crowd[1:2], sampling.gumbel([11], torch.tensor([3]), 500))


def test_a_tiny_temperature_is_nearly_greedy(logits):
    assert torch.equal(scores(logits, *[Sampling(temperature=1e-30)] * ROWS).argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("top_logprobs", 98),
        ("logit_bias", {97: 1.0}),
        ("logit_bias", {3: math.inf}),
    ],
    ids=str,
)
def test_settings_of_no_distribution_are_refused_by_name(setting, value):
    with pytest.raises(DualHeadError, match=setting):
        sampling.require_sampling(replace(Sampling(), **{setting: value}), 97)
