"""The peers compute what their papers say: against loops in float64, and against decoding without any cache."""

import copy
import math
from functools import partial

import job
import peers
import pytest
import torch
from transformers.generation.streamers import BaseStreamer

SIZES = {"vocab_size": 23, "hidden_size": 16, "layers": 1}
ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10], "rejected_ids": [11]},
    {"prompt_ids": [12], "chosen_ids": [13], "rejected_ids": [14, 15]},
]
PROMPTS = torch.tensor([[3, 4, 5], [9, 8, 7]])


def spread(model, seed=0):
    """Weights ten times as far apart as a new model's, so that its logits differ by more than rounding."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def lm():
    return spread(job.language_model(**SIZES))


# ---- Dual-Head -------------------------------------------------------------------------------------------


def by_hand(lm, heads, prompt, response):
    """Of each response token: log pi(y), log pi_reward(y), H(g), KL(pi || base); one sequence, token by token."""
    out = []
    hidden = lm.model(torch.tensor([prompt + response])).last_hidden_state[0]
    query, key, value = heads.qkv.weight.chunk(3)
    for t, label in enumerate(response, start=len(prompt) - 1):
        mixed = []
        for head in range(heads.heads):
            of_head = slice(head * heads.width, (head + 1) * heads.width)
            scores = [query[of_head] @ hidden[t] @ (key[of_head] @ hidden[s]) for s in range(t + 1)]
            weights = (torch.stack(scores) / math.sqrt(heads.width)).softmax(0)
            mixed.append(sum(weights[s] * (value[of_head] @ hidden[s]) for s in range(t + 1)))
        g = torch.sigmoid(heads.output.weight[0] @ torch.cat(mixed) + heads.output.bias[0])
        z_base, z_reward = lm.lm_head.weight @ hidden[t], heads.reward.weight @ hidden[t]
        policy = ((1 - g) * z_base + g * z_reward).log_softmax(0)
        entropy = -g * g.log() - (1 - g) * (1 - g).log()
        kl = sum(policy.exp() * (policy - z_base.log_softmax(0)))
        out.append((policy[label], z_reward.log_softmax(0)[label], entropy, kl))
    return torch.tensor(out, dtype=torch.float64).T


def test_naive_losses_equal_those_computed_token_by_token(lm):
    lm = lm.double()
    heads = spread(peers.NaiveHeads(lm.lm_head, heads=2, width=3), seed=1).double()
    losses = peers.naive_dual_head_losses(lm, heads, job.padded(ROWS, length=8))
    next_token, preference, entropy, kl = [], [], [], []
    with torch.no_grad():
        for row in ROWS:
            chosen = by_hand(lm, heads, row["prompt_ids"], row["chosen_ids"])
            rejected = by_hand(lm, heads, row["prompt_ids"], row["rejected_ids"])
            next_token.append(-chosen[0].mean())
            preference.append(-torch.log(torch.sigmoid(0.05 * (chosen[1].sum() - rejected[1].sum()))))
            entropy.append(torch.cat([chosen[2], rejected[2]]).mean())
            kl += [chosen[3].mean(), rejected[3].mean()]
    means = [sum(values) / len(values) for values in (next_token, preference, entropy, kl)]
    got = [losses.next_token, losses.preference, losses.gate_entropy, losses.kl]
    torch.testing.assert_close(torch.stack(got).double(), torch.stack(means), rtol=1e-5, atol=1e-6)
    assert losses.total.item() == pytest.approx((means[0] + means[1] - 0.01 * means[2]).item(), rel=1e-5)
    assert losses.kl > 0.01


def test_new_heads_are_the_backbone(lm):
    losses = peers.naive_dual_head_losses(lm, peers.NaiveHeads(lm.lm_head), job.padded(ROWS, length=8))
    assert losses.kl.item() == pytest.approx(0, abs=1e-6)


def test_a_naive_step_trains_the_heads_and_leaves_the_backbone(lm):
    before = copy.deepcopy(lm.state_dict())
    heads = peers.NaiveHeads(lm.lm_head)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.01)
    losses = [peers.naive_dual_head_step(lm, heads, job.padded(ROWS, length=8), optimizer) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert all(weight.equal(before[name]) for name, weight in lm.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.parameters())


# ---- DPO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False])
def test_dpo_starts_at_log_2_learns_and_takes_precomputed_log_probs_for_the_same(lm, lora):
    pytest.importorskip("trl")
    before = copy.deepcopy(lm.state_dict())
    losses = []
    for precomputed in (True, False):
        step = peers.trl_dpo(lm, ROWS, lora=lora, precomputed=precomputed, learning_rate=0.01)
        losses.append([step() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] == pytest.approx(math.log(2), rel=1e-4)
    assert losses[0][2] < losses[0][0] - 0.01
    assert all(weight.equal(before[name]) for name, weight in lm.state_dict().items())


# ---- generation ------------------------------------------------------------------------------------------


def continued(ids, new, choose):
    """Greedy decoding by the definition: choose(ids [B, T]) gives the next token of each row, from all of them."""
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, choose(ids)[:, None]], dim=1)
    return ids


def test_plain_generation_takes_the_likeliest_token_and_as_many_as_asked(lm):
    assert peers.plain_generate(lm, PROMPTS, 6).equal(
        continued(PROMPTS, 6, lambda ids: lm(ids).logits[:, -1].argmax(-1))
    )


def test_genarm_adds_the_log_probabilities_of_the_second_model(lm):
    arm = spread(job.language_model(**SIZES), seed=5)

    def choose(ids):
        return (lm(ids).logits[:, -1] + 1.5 * arm(ids).logits[:, -1].log_softmax(-1)).argmax(-1)

    aligned = peers.genarm_two_models(lm, arm, PROMPTS, 6, alpha=1.5)
    assert aligned.equal(continued(PROMPTS, 6, choose))
    assert not aligned.equal(peers.genarm_two_models(lm, arm, PROMPTS, 6, alpha=0.0))


def test_args_adds_the_score_of_the_text_with_each_candidate(lm):
    reward_model, k, w = spread(job.reward_model(**SIZES), seed=7), 3, 4.0

    def choose(ids):
        z, candidates = lm(ids).logits[:, -1].topk(k)
        longer = [torch.cat([ids, candidates[:, j, None]], dim=1) for j in range(k)]
        scores = torch.cat([reward_model(text).logits for text in longer], dim=1)
        return candidates.gather(1, (z + w * scores).argmax(-1, keepdim=True))[:, 0]

    aligned = peers.args_k_forwards(lm, reward_model, PROMPTS, 6, k, w)
    assert aligned.equal(continued(PROMPTS, 6, choose))
    assert not aligned.equal(peers.args_k_forwards(lm, reward_model, PROMPTS, 6, k, 0.0))
    each = [peers.args_k_forwards(lm, reward_model, row[None], 6, k, w) for row in PROMPTS]
    assert torch.cat(each).equal(aligned)


def test_loops_stream_the_prompt_and_every_token_as_generate_does(lm):
    class Kept(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.append(value.reshape(len(PROMPTS), -1))

        def end(self):
            pass

    judge = spread(job.reward_model(**SIZES), seed=7)
    for run in (
        partial(peers.plain_generate, lm, PROMPTS, 3),
        partial(peers.genarm_two_models, lm, lm, PROMPTS, 3, 1.0),
        partial(peers.args_k_forwards, lm, judge, PROMPTS, 3, 2, 1.0),
    ):
        kept = Kept()
        out = run(streamer=kept)
        assert [x.shape[1] for x in kept.tokens] == [PROMPTS.shape[1], 1, 1, 1]
        assert torch.cat(kept.tokens, 1).equal(out)
