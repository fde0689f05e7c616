"""A guide as a reward model: log-ratios that equal a naive computation, and the rewards that they sum to."""

import pytest
import torch
from engines import character_tokenizer
from models import guided_lm

from dual_head import RewardHeadConfig
from dual_head.data import Cut
from dual_head.errors import DualHeadError
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.model.rewards import score_rows
from dual_head.model.score import reply_scalars

ROWS = [([1, 5, 9, 30], [7, 8]), ([1], [40, 41, 42, 43, 44]), ([1, 60, 61, 62, 63, 64, 65, 66], [3]), ([9, 9], [12, 5])]
KINDS = {
    "gated": RewardHeadConfig(num_heads=2, head_dim=8),
    "linear": LinearConfig(),
    "hidden": HiddenConfig(rank=4),
    "layers": MultilayerConfig(),
}
TOKENIZER = character_tokenizer()


@pytest.fixture(scope="module", params=[*KINDS, "all"])
def guided(request):
    return guided_lm(KINDS if request.param == "all" else {request.param: KINDS[request.param]})


def naive(model, row, alpha):
    """Log-probability of each token of a reply, in fp64, from logits of the whole sequence alone."""
    prompt, reply = row
    logps = model(torch.tensor([[*prompt, *reply]]), alpha=alpha).logits[0].double().log_softmax(-1)
    return [logps[len(prompt) + t - 1, token].item() for t, token in enumerate(reply)]


@pytest.mark.parametrize("alpha", [1.0, -0.5, 2.0])
@torch.no_grad()
def test_each_token_has_the_log_ratio_of_policy_and_backbone_whatever_shares_its_batch(guided, alpha):
    for row, score in zip(ROWS, score_rows(guided, ROWS, alpha=alpha, batch_size=3), strict=True):
        policy, base = naive(guided, row, alpha), naive(guided, row, 0.0)
        assert [token.token_id for token in score.tokens] == row[1]
        assert [token.policy_logp for token in score.tokens] == pytest.approx(policy, abs=1e-5, rel=1e-5)
        assert [token.base_logp for token in score.tokens] == pytest.approx(base, abs=1e-5, rel=1e-5)
        assert score.reward == pytest.approx(sum(policy) - sum(base), abs=1e-4)


def test_without_strength_every_reward_and_divergence_is_zero(guided):
    for score in score_rows(guided, ROWS, alpha=0.0):
        assert {token.reward for token in score.tokens} == {0.0}
        assert score.kl == score.reward == 0.0


def test_divergence_is_that_of_the_scalars_of_a_reply(guided):
    prompt, reply = ROWS[1]
    sequences, mask = torch.tensor([[*prompt, *reply]]), torch.ones(1, len(prompt), dtype=torch.long)
    scalars = reply_scalars(guided, sequences, mask, alpha=1.0, lengths=torch.tensor([len(reply)]))
    assert score_rows(guided, [ROWS[1]], alpha=1.0)[0].kl == pytest.approx(scalars["kl"].item(), abs=1e-5)


def test_the_guides_own_distribution_has_neither_strength_nor_gate_and_is_that_of_one_guide():
    model = guided_lm({"gated": KINDS["gated"]})
    at = {alpha: score_rows(model, ROWS, alpha=alpha) for alpha in (0.5, 2.0)}
    for weak, strong in zip(at[0.5], at[2.0], strict=True):
        logps = [token.reward_logp for token in weak.tokens]
        assert logps == pytest.approx([token.reward_logp for token in strong.tokens], abs=1e-6)
        assert all(0 < token.gates["gated"] < 1 for token in weak.tokens)
    ungated = guided_lm({"linear": KINDS["linear"]})  # no gate: at alpha = 1 the policy is that distribution
    for score in score_rows(ungated, ROWS, alpha=1.0):
        assert [token.reward_logp for token in score.tokens] == pytest.approx([t.policy_logp for t in score.tokens])
    several = score_rows(guided_lm(KINDS), ROWS, alpha=1.0)
    assert {token.reward_logp for score in several for token in score.tokens} == {None}


def test_a_text_is_scored_with_the_end_of_its_turn_and_a_cut_one_without():
    model = guided_lm({"hidden": KINDS["hidden"]})
    whole, cut = model.score(["ab"] * 2, ["cd", Cut("cd")], alpha=1.0, tokenizer=TOKENIZER)
    assert [token.token_id for token in whole.tokens][:-1] == [token.token_id for token in cut.tokens]
    assert whole.tokens[-1].token_id == TOKENIZER.eos_token_id
    assert sum(token.reward for token in whole.tokens[:-1]) == pytest.approx(cut.reward, abs=1e-5)


@pytest.mark.parametrize("alpha", [3e38, {"linear": 3e38, "hidden": 0.0}])
def test_logits_that_are_no_numbers_are_refused(alpha):
    model = guided_lm({"linear": KINDS["linear"], "hidden": KINDS["hidden"]})
    with pytest.raises(DualHeadError, match=r"logits of NaN or infinity.*Lower alpha"):
        score_rows(model, ROWS, alpha=alpha)


@pytest.mark.parametrize(
    ("prompts", "replies"), [("ab", "cd"), (["ab"], "c"), ([{"role": "user", "content": "ab"}], ["cd"])]
)
def test_one_prompt_and_one_reply_are_not_taken_for_lists_of_their_parts(prompts, replies):
    model = guided_lm({"g": LinearConfig()})
    with pytest.raises(DualHeadError, match=r"Give \[prompt\] and \[reply\]"):
        model.score(prompts, replies, tokenizer=TOKENIZER)


def test_what_cannot_be_scored_is_refused_with_its_number():
    model = guided_lm({"hidden": KINDS["hidden"]})
    with pytest.raises(DualHeadError, match="2 prompts and 1 replies"):
        model.score(["a", "b"], ["c"], tokenizer=TOKENIZER)
    with pytest.raises(DualHeadError, match="Reply 2 cannot be scored: it or its prompt has no tokens"):
        model.score(["a", "a"], ["c", Cut("")], tokenizer=TOKENIZER)
    with pytest.raises(DualHeadError, match=r"Reply 1 and its prompt have .* tokens, and the backbone reads"):
        model.score(["a"], ["c" * 100_000], tokenizer=TOKENIZER)
    with pytest.raises(DualHeadError, match="batch_size"):
        model.score(["a"], ["c"], tokenizer=TOKENIZER, batch_size=0)
