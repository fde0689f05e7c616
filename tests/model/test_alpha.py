"""Alpha as people write it, and what it means: who acts, how strongly, in which row."""

import math

import pytest
import torch
from models import PAD, VOCAB, guided_lm, tiny_lm

from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig
from dual_head.model.alpha import LinearDecay, Strengths, resolve_alpha

TWO = {"helpful": 1.0, "harmless": 0.5}


@pytest.mark.parametrize(
    ("alpha", "acting", "strengths"),
    [
        (None, ("helpful", "harmless"), [[1, 0.5], [1, 0.5]]),
        (2, ("helpful", "harmless"), [[2, 2], [2, 2]]),
        (-0.5, ("helpful", "harmless"), [[-0.5, -0.5], [-0.5, -0.5]]),
        ([0.0, 1.5], ("helpful", "harmless"), [[0, 0], [1.5, 1.5]]),
        (torch.tensor([0.0, 1.5]), ("helpful", "harmless"), [[0, 0], [1.5, 1.5]]),
        (torch.tensor(2.0), ("helpful", "harmless"), [[2, 2], [2, 2]]),
        ({"harmless": 3}, ("harmless",), [[3], [3]]),
        ({"harmless": [0, 3], "helpful": 1}, ("helpful", "harmless"), [[1, 0], [1, 3]]),
        ({"harmless": [0, 0], "helpful": 1}, ("helpful",), [[1], [1]]),
    ],
)
def test_every_way_to_write_alpha(alpha, acting, strengths):
    found, resolved = resolve_alpha(alpha, defaults=TWO, rows=2)
    assert found.names == acting
    assert resolved.dtype == torch.float32
    assert resolved.tolist() == strengths


@pytest.mark.parametrize("alpha", [0, 0.0, [0, 0], {}, {"helpful": 0}, torch.zeros(2)])
def test_at_zero_nobody_acts(alpha):
    acting, resolved = resolve_alpha(alpha, defaults=TWO, rows=2)
    assert acting.names == ()
    assert resolved.shape == (2, 0)


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ({"helpfull": 1}, "No guide is named 'helpfull'. Did you mean 'helpful'?"),
        ({"zzz": 1}, "No guide is named 'zzz'. Known: harmless, helpful."),
        ([1, 2, 3], "alpha for 'helpful' has 3 values for 2 rows. Give one number, or one per row."),
        ({"harmless": [1]}, "alpha for 'harmless' has 1 values for 2 rows."),
        (math.nan, "alpha for 'helpful' holds NaN or infinity"),
        ([0, math.inf], "alpha for 'helpful' holds NaN or infinity: [0.0, inf]. Give finite numbers."),
        (1e39, "alpha for 'helpful' holds NaN or infinity"),  # in fp32
        (10**400, "alpha for 'helpful' holds NaN or infinity: [inf, inf]"),
    ],
)
def test_a_wrong_alpha_is_refused_with_the_remedy(alpha, said):
    with pytest.raises(DualHeadError) as refusal:
        resolve_alpha(alpha, defaults=TWO, rows=2)
    assert said in str(refusal.value)


@pytest.mark.parametrize("alpha", [0.6, -0.1, {"helpful": [0.5, 1.1]}, {"helpful": 0.7, "harmless": [0.3, 0.4]}])
def test_probabilities_refuse_weights_that_are_no_shares(alpha):
    with pytest.raises(DualHeadError, match=r"at most 1.*Use fusion='logits'"):
        resolve_alpha(alpha, defaults=TWO, rows=2, fusion="probabilities")


@pytest.mark.parametrize("alpha", [0.5, {"helpful": 1}, {"helpful": 0.3, "harmless": [0.7, 0.1]}])
def test_probabilities_take_shares(alpha):
    _, strengths = resolve_alpha(alpha, defaults=TWO, rows=2, fusion="probabilities")
    assert (strengths.sum(1) <= 1).all()


def test_decimal_shares_that_add_up_to_one_are_shares_whatever_their_rounding():
    shares = {"a": 0.2, "b": 0.4, "c": 0.3, "d": 0.1}
    assert sum(shares.values()) > 1  # by one bit of a float
    resolve_alpha(shares, defaults=dict.fromkeys(shares, 0.0), rows=1, fusion="probabilities")


@pytest.mark.parametrize("alpha", [{"helpfull": 2.0}, {"helpful": math.nan}])
def test_a_wrong_default_is_refused_when_guides_are_attached(alpha):
    with pytest.raises(DualHeadError, match=r"'helpfull?'"):
        AlignedModel.from_backbone(tiny_lm("llama"), {"helpful": RewardHeadConfig()}, alpha=alpha)


def test_defaults_that_are_no_shares_together_are_refused_when_guides_are_built_and_attached():
    two = {"helpful": LinearConfig(), "harmless": LinearConfig()}
    with pytest.raises(DualHeadError, match=r"at most 1, not \[1\.0, 1\.0\]\. Lower them"):
        AlignedModel.from_backbone(tiny_lm("llama"), two, fusion="probabilities")
    one = {"helpful": LinearConfig()}
    model = AlignedModel.from_backbone(tiny_lm("llama"), one, alpha={"helpful": 0.75}, fusion="probabilities")
    with pytest.raises(DualHeadError, match=r"at most 1, not \[0\.75, 1\.0\]\. Lower them"):
        model.attach("harmless", LinearConfig())
    assert list(model.config.guides) == list(model.config.alpha) == ["helpful"]
    model.attach("harmless", LinearConfig(), alpha=0.25)
    assert model.config.alpha == {"helpful": 0.75, "harmless": 0.25}


def test_options_of_loading_are_refused_beside_a_loaded_backbone():
    with pytest.raises((DualHeadError, TypeError), match="dtype"):
        AlignedModel.from_backbone(tiny_lm("llama"), {"helpful": RewardHeadConfig()}, dtype=torch.bfloat16)


# ---- schedules over the new tokens -------------------------------------------------------------------------


def strengths(acting: Strengths, values: torch.Tensor, *columns: int) -> torch.Tensor:
    return acting.at(values, torch.tensor(columns))


@pytest.mark.parametrize(
    ("decay", "by_hand"),
    [
        (LinearDecay(1.0, 0.0, tokens=4), [1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (LinearDecay(0.5, 2.0, tokens=3), [0.5, 1, 1.5, 2, 2, 2, 2]),
        (LinearDecay(2.0, -2.0, tokens=1), [2, -2, -2, -2, -2, -2, -2]),
        (LinearDecay(), [1 - t / 64 for t in range(7)]),
    ],
)
def test_a_decay_goes_from_its_start_to_its_end_and_stays(decay, by_hand):
    assert decay(torch.arange(7)).tolist() == pytest.approx(by_hand)


def test_a_schedule_counts_from_the_first_new_token():
    """After three tokens of a prompt, the logits at position 2 are those of new token 0."""
    acting, values = resolve_alpha(lambda t: 10.0 + t, defaults={"g": 1.0}, rows=2, origin=3)
    assert acting.names == ("g",)
    assert strengths(acting, values, 0, 1, 2, 3, 4).tolist() == [[[10], [10], [10], [11], [12]]] * 2
    assert strengths(acting, values, 4).tolist() == [[[12]]] * 2


def test_a_schedule_stands_beside_numbers_and_rows():
    alpha = {"harmless": [0.5, 0.25], "helpful": LinearDecay(2.0, 0.0, tokens=2), "honest": 3}
    acting, values = resolve_alpha(alpha, defaults={**TWO, "honest": 1.0, "brief": 1.0}, rows=2, origin=1)
    assert acting.names == ("helpful", "harmless", "honest")
    assert strengths(acting, values, 0, 1, 2).tolist() == [
        [[2, 0.5, 3], [1, 0.5, 3], [0, 0.5, 3]],
        [[2, 0.25, 3], [1, 0.25, 3], [0, 0.25, 3]],
    ]


def test_numbers_alone_are_the_same_at_every_position():
    acting, values = resolve_alpha({"helpful": [2, 3]}, defaults=TWO, rows=2)
    assert strengths(acting, values, 0, 1, 2).tolist() == [[[2]], [[3]]]


def test_a_schedule_always_acts_even_if_it_begins_at_0():
    acting, _ = resolve_alpha({"helpful": LinearDecay(0.0, 1.0)}, defaults=TWO, rows=2)
    assert acting.names == ("helpful",)


@pytest.mark.parametrize(
    "schedule", [lambda t: [0.5 * i for i in t.tolist()], lambda t: 0.5 * t.numpy(), lambda t: 0.5 * t.double()]
)
def test_a_schedule_may_give_any_numbers(schedule):
    acting, values = resolve_alpha(schedule, defaults={"g": 1.0}, rows=1)
    assert strengths(acting, values, 0, 1, 2).tolist() == [[[0.5], [1], [1.5]]]
    assert strengths(acting, values, 0).dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (lambda t: 0.5, r"gave 0\.5 for tokens \[0, 1, 2, 3\]"),
        (lambda t: t[:2] * 1.0, r"gave tensor\(\[0\., 1\.\]\) for tokens \[0, 1, 2, 3\]"),
        (lambda t: 1.0 / t, r"gave tensor\(\[   inf"),
        (lambda t: t * math.nan, r"gave tensor\(\[nan"),
        (lambda t: "strong", "failed for tokens .*: "),
        (lambda: 1.0, "failed for tokens .*: .*takes 0 positional arguments"),
        (lambda t: t @ torch.ones(9), "failed for tokens .*: "),
        (lambda t: torch.tensor([1.0, 0.5, 0.2, 0.1])[t], r"failed for tokens \[1000, .*: "),
        (lambda t: torch.tensor([1.0, 0.5, 0.2, 0.1]), r"gave .* for tokens \[0\]"),
    ],
)
def test_a_bad_schedule_is_refused_with_the_remedy(schedule, said):
    remedy = r"called with a tensor of token indices and returns one finite strength each, as lambda t: 0\.99\*\*t does"
    with pytest.raises(DualHeadError, match=f"(?s)The schedule of 'helpful' {said}.*{remedy}"):
        resolve_alpha({"helpful": schedule}, defaults=TWO, rows=2)


@pytest.mark.parametrize("alpha", [LinearDecay(0.5, 0.0), {"helpful": lambda t: 0.1**t, "harmless": 0.1}])
def test_schedules_and_probabilities_do_not_go_together(alpha):
    with pytest.raises(DualHeadError, match=r"A schedule of alpha goes with fusion='logits' only"):
        resolve_alpha(alpha, defaults=TWO, rows=2, fusion="probabilities")


# ---- schedules while generating ----------------------------------------------------------------------------

PROMPTS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
PADDED = torch.tensor([[PAD, PAD, 5, 6], [9, 10, 11, 12]])
NEW = 8
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
FADING = {"speaks": LinearDecay(3.0, -3.0, tokens=5), "edits": [1.0, 0.5]}
SCHEDULES = pytest.mark.parametrize(
    "alpha", [LinearDecay(3.0, -3.0, tokens=5), FADING, {"edits": lambda t: 2.0 * (t % 2)}], ids=["one", "two", "odd"]
)


@pytest.fixture(scope="module")
def model() -> AlignedModel:
    return guided_lm({"speaks": LinearConfig(), "edits": HiddenConfig(gate="attention")}, spread=0.5)


def at_token(alpha, t: int):
    """The numbers that a schedule stands for at one new token."""
    if isinstance(alpha, dict):
        return {name: at_token(value, t) for name, value in alpha.items()}
    return alpha(torch.tensor([t])).item() if callable(alpha) else alpha


@torch.no_grad()
def token_by_token(model: AlignedModel, ids: torch.Tensor, alpha) -> torch.Tensor:
    """Greedy decoding by one whole pass for every token, each at plain numbers."""
    for t in range(NEW):
        mask = torch.cat([ids[:, : PADDED.shape[1]] != PAD, torch.ones(len(ids), t)], 1).long()
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        logits = model(ids, attention_mask=mask, position_ids=positions, alpha=at_token(alpha, t)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids


@SCHEDULES
@pytest.mark.parametrize("prompts", [PROMPTS, PADDED], ids=["even", "padded"])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generating_on_a_schedule_is_each_token_at_its_own_strength(model, alpha, prompts, options):
    mask = (prompts != PAD).long()
    generated = model.generate(prompts, attention_mask=mask, alpha=alpha, **options, **GREEDY)
    assert torch.equal(generated, token_by_token(model, prompts, alpha))
    constant = model.generate(prompts, attention_mask=mask, alpha=at_token(alpha, 1), **GREEDY)
    assert not torch.equal(generated, constant)


@SCHEDULES
def test_beams_on_a_schedule_are_the_same_with_and_without_a_cache(model, alpha):
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "alpha": alpha, "attention_mask": PADDED != PAD}
    assert torch.equal(model.generate(PADDED, **beams), model.generate(PADDED, use_cache=False, **beams))


@pytest.mark.parametrize("how", ["assistant", "prompt_lookup"])
@pytest.mark.parametrize("alpha", [LinearDecay(0.6, -0.6, tokens=5), {"speaks": lambda t: 0.5**t}])
def test_assisted_decoding_on_a_schedule_gives_the_same_tokens(model, how, alpha):
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    option = {"assistant_model": model.backbone.lm} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    assert torch.equal(model.generate(ids, alpha=alpha, **option, **GREEDY), model.generate(ids, alpha=alpha, **GREEDY))


@SCHEDULES
def test_a_trace_knows_the_schedule(model, alpha):
    mask = (PADDED != PAD).long()
    sequences, traces = model.generate(PADDED, attention_mask=mask, alpha=alpha, return_trace=True, **GREEDY)
    ids, new = sequences[1:, :-1], sequences[1, 4:]
    for t, token in enumerate(traces[1]):
        own = at_token(alpha, t)
        own = {k: v[1] if isinstance(v, list) else v for k, v in own.items()} if isinstance(own, dict) else own
        with torch.no_grad():
            logps = model(ids, alpha=own).logits[0, 3 + t].log_softmax(-1)
        assert token.policy_logp == pytest.approx(logps[new[t]].item(), abs=1e-3)


@torch.no_grad()
def test_a_plain_pass_counts_from_the_first_token_with_a_cache_and_without(model):
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    decay = LinearDecay(2.0, -1.0, tokens=6)
    whole = model(ids, alpha=decay).logits
    for t in range(9):
        torch.testing.assert_close(whole[:, t], model(ids, alpha=decay(torch.tensor(t + 1)).item()).logits[:, t])
    first = model(ids[:, :4], alpha=decay, use_cache=True)
    rest = model(ids[:, 4:], alpha=decay, past_key_values=first.past_key_values, use_cache=True, logits_to_keep=3)
    torch.testing.assert_close(rest.logits, whole[:, -3:], atol=1e-4, rtol=1e-4)


def test_a_mixture_of_probabilities_refuses_to_generate_on_a_schedule():
    model = guided_lm({"speaks": LinearConfig()}, fusion="probabilities")
    with pytest.raises(DualHeadError, match="fusion='logits' only"):
        model.generate(PROMPTS, alpha=LinearDecay(0.5, 0.0), **GREEDY)
