"""Log-likelihoods: equal to a naive log-softmax in fp64, whatever the padding, the strength or the chunks."""

import math

import pytest
import torch
from files import ASKED, GOOD, word_tokenizer
from models import EOS, guided_lm, steered_lm, tiny_lm

from dual_head import DualHeadError, RewardHeadConfig
from dual_head.evaluate.metrics.continuations import continuation_ids, fit, windows
from dual_head.evaluate.metrics.likelihood import continuation_logps, divergences, perplexity, score_ids
from dual_head.guides.linear import LinearConfig
from dual_head.model.alpha import LinearDecay
from dual_head.model.score import reply_scalars

ROWS = [([1, 5, 9, 30], [7, 8]), ([1], [40, 41, 42, 43, 44]), ([1, 60, 61, 62, 63, 64, 65, 66], [3]), ([9, 9], [12, 5])]
GUIDES = {"gated": RewardHeadConfig(num_heads=2, head_dim=8), "plain": LinearConfig()}


@pytest.fixture(scope="module")
def plain():
    return tiny_lm("llama").eval()


@pytest.fixture(scope="module")
def guided():
    return guided_lm(GUIDES)


def naive(logits, prompt, continuation):
    """Log-probability of each continuation token, from logits [T, V] of the whole, in fp64."""
    logps = logits.double().log_softmax(-1)
    return [logps[len(prompt) + t - 1, token].item() for t, token in enumerate(continuation)]


def whole(row):
    return torch.tensor([[*row[0], *row[1]]])


# ---- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi"])
@torch.no_grad()
def test_a_plain_model_scores_as_a_naive_log_softmax_in_fp64_does(architecture):
    lm = tiny_lm(architecture).eval()
    for row, found in zip(ROWS, score_ids(lm, ROWS), strict=True):
        assert found.logp == pytest.approx(sum(naive(lm(whole(row)).logits[0], *row)), abs=1e-5)
        assert found.tokens == len(row[1])


@pytest.mark.parametrize("alpha", [None, 0.0, 1.5, {"gated": 2.0}, {"plain": -1.0, "gated": 0.5}])
@torch.no_grad()
def test_a_guided_model_scores_its_policy_at_any_strength(guided, alpha):
    for row, found in zip(ROWS, score_ids(guided, ROWS, alpha=alpha), strict=True):
        logits = guided(whole(row), alpha=alpha).logits[0]
        assert found.logp == pytest.approx(sum(naive(logits, *row)), abs=1e-5)


@torch.no_grad()
def test_at_strength_zero_a_guided_model_is_its_backbone(guided):
    ours, backbone = score_ids(guided, ROWS, alpha=0.0), score_ids(guided.backbone.lm, ROWS)
    assert [x.logp for x in ours] == [x.logp for x in backbone]
    assert ours != score_ids(guided, ROWS, alpha=1.0)


@torch.no_grad()
def test_a_schedule_of_strengths_counts_from_the_first_token_of_the_continuation(guided):
    prompt, continuation = ROWS[1]
    found = score_ids(guided, ROWS, alpha=LinearDecay(2.0, 0.0, 4))[1]
    by_hand = 0.0
    for t, strength in enumerate([2.0, 1.5, 1.0, 0.5, 0.0]):
        logits = guided(whole((prompt, continuation)), alpha=strength).logits[0]
        by_hand += naive(logits, prompt, continuation)[t]
    assert found.logp == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_padding_changes_no_score_and_no_order(guided, batch_size):
    alone = [score_ids(guided, [row])[0] for row in ROWS]
    together = score_ids(guided, ROWS, batch_size=batch_size)
    for one, other in zip(alone, together, strict=True):
        assert other.logp == pytest.approx(one.logp, abs=1e-5)
        assert other[1:] == one[1:]


def test_logits_in_small_chunks_give_the_same_scores(guided, plain):
    for model in (guided, plain):
        small = score_ids(model, ROWS, budget=2 * 97 * 32)  # two tokens at a time
        for one, other in zip(score_ids(model, ROWS), small, strict=True):
            assert other.logp == pytest.approx(one.logp, abs=1e-5)


def test_no_logits_are_computed_for_prompts(plain, monkeypatch):
    rows, head = [], plain.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    try:
        score_ids(plain, [([1] * 60, [7, 8])])
    finally:
        hook.remove()
    assert rows == [2]


@torch.no_grad()
def test_greedy_means_that_every_token_was_the_likeliest(plain):
    prompt = [1, 5, 9]
    said = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=3, eos_token_id=None)[0, 3:].tolist()
    other = [*said[:2], (said[2] + 1) % 97]
    assert [x.greedy for x in score_ids(plain, [(prompt, said), (prompt, other)])] == [True, False]


def test_a_prompt_too_long_loses_its_beginning_and_says_so(plain, caplog):
    long, reply = list(range(3, 95)) * 2, [7, 8, 9]
    found = score_ids(plain, [(long, reply)])[0]
    kept = long[-(128 + 1 - 3) :]  # the last token is predicted and never read
    assert found.logp == pytest.approx(score_ids(plain, [(kept, reply)])[0].logp, abs=1e-6)
    assert "1 of 1 prompts lost their beginning" in caplog.text
    assert score_ids(plain, [([1], [5] * 128)])[0].tokens == 128
    with pytest.raises(DualHeadError, match="has 129 tokens and the model reads 128"):
        score_ids(plain, [([1], [5] * 129)])


def test_the_last_token_needs_no_place_in_the_context():
    whole = ([*range(1, 7)], [7, 8, 9])
    assert fit(whole, 8) == whole  # nine tokens, of which eight are read
    assert fit(whole, 7) == ([*range(2, 7)], [7, 8, 9])
    assert fit(whole, None) == whole


def test_what_would_make_the_numbers_wrong_is_refused(guided):
    training = tiny_lm("llama").train()
    with pytest.raises(DualHeadError, match=r"model\.eval"):
        score_ids(training, ROWS)
    training.eval()
    with pytest.raises(DualHeadError, match="this model has none"):
        score_ids(training, ROWS, alpha=1.0)
    with pytest.raises(DualHeadError, match="at least one token"):
        score_ids(training, [([], [3])])
    with pytest.raises(DualHeadError, match="Did you mean 'gated'"):
        score_ids(guided, ROWS, alpha={"gatd": 1.0})
    with pytest.raises(DualHeadError, match="at least 1"):
        score_ids(guided, ROWS, batch_size=0)


# ---- text ------------------------------------------------------------------------------------------------


def test_text_is_tokenised_as_training_does():
    tokenizer = word_tokenizer()
    word = tokenizer.convert_tokens_to_ids
    assert continuation_ids("ask0 ask1", " good1 good2", tokenizer) == (
        [1, word("ask0"), word("ask1")],
        [word("good1"), word("good2")],
    )
    chat = [{"role": "user", "content": "ask3"}]
    prompt, reply = continuation_ids(chat, "good1", tokenizer)  # "Human: ask3 Assistant: good1"
    assert len(prompt) == 4
    assert reply == [word("good1")]
    assert continuation_ids("", "good1", tokenizer) == ([1], [word("good1")])
    tokenizer.chat_template = "{% for m in messages %}i {{ m['content'] }} {% endfor %}"
    assert continuation_ids(chat, "good1", tokenizer) == ([word("i"), word("ask3")], [word("i"), word("good1")])
    with pytest.raises(DualHeadError, match="continuation is empty"):
        continuation_ids("ask0", "", tokenizer)


def test_a_tokenizer_without_a_beginning_uses_the_end_or_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.bos_token = None
    assert continuation_ids("", "good1", tokenizer)[0] == [EOS]
    tokenizer.eos_token = None
    with pytest.raises(DualHeadError, match="neither BOS nor EOS"):
        continuation_ids("", "good1", tokenizer)


@torch.no_grad()
def test_pairs_of_text_are_scored(plain):
    tokenizer = word_tokenizer()
    pairs = [("ask0 ask1", " good1 good2"), ("ask2", " bad3")]
    for pair, found in zip(pairs, continuation_logps(plain, tokenizer, pairs), strict=True):
        row = continuation_ids(*pair, tokenizer)
        assert found.logp == pytest.approx(sum(naive(plain(whole(row)).logits[0], *row)), abs=1e-5)


# ---- perplexity ------------------------------------------------------------------------------------------


def test_windows_score_every_token_once_and_the_last_reads_far_back():
    assert windows([10, 11, 12], 1, 8) == [([1], [10, 11, 12])]
    # The example of the harness: ten tokens, a context of four.
    assert windows([*range(10)], 99, 4) == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert windows([5, 6], 1, None) == [([1], [5, 6])]
    assert windows([], 1, 4) == []


@torch.no_grad()
def test_perplexity_is_the_inverse_geometric_mean_of_probabilities(plain):
    tokenizer = word_tokenizer()
    text = "ask0 good1 good2 ask5"
    ids = tokenizer(text)["input_ids"]  # <s> first
    by_hand = math.exp(-sum(naive(plain(torch.tensor([ids])).logits[0], ids[:1], ids[1:])) / 4)
    assert perplexity(plain, tokenizer, [text, "good1"])[0] == pytest.approx(by_hand, rel=1e-5)
    long = " ".join((ASKED + GOOD) * 6)  # 168 words in a context of 128
    first, second = windows(tokenizer(long, add_special_tokens=False)["input_ids"], 1, 128)
    logps = score_ids(plain, [first, second])
    assert [len(first[1]), len(second[1])] == [128, 40]
    assert perplexity(plain, tokenizer, [long])[0] == pytest.approx(math.exp(-sum(x.logp for x in logps) / 168))
    with pytest.raises(DualHeadError, match="Text 2 has no tokens"):
        perplexity(plain, tokenizer, [text, ""])


# ---- divergence ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_divergence_from_the_backbone_is_that_of_sweeps(guided):
    found = divergences(guided, ROWS, alpha=1.5)
    for row, kl in zip(ROWS, found, strict=True):
        prompt = torch.ones(1, len(row[0]), dtype=torch.long)
        lengths = torch.tensor([len(row[1])])
        assert kl == pytest.approx(
            reply_scalars(guided, whole(row), prompt, alpha=1.5, lengths=lengths)["kl"].item(), abs=1e-5
        )
        assert kl > 0.01
    assert divergences(guided, ROWS, alpha=0.0) == [0.0] * len(ROWS)


@torch.no_grad()
def test_a_divergence_that_is_no_number_is_not_zero(guided):
    assert all(map(math.isnan, divergences(guided, ROWS, alpha=1e38)))


@torch.no_grad()
def test_divergence_between_two_models_is_that_of_their_logits(plain):
    other = tiny_lm("llama", seed=1).eval()
    for row, kl in zip(ROWS, divergences(plain, ROWS, base=other), strict=True):
        p, q = (lm(whole(row)).logits[0].double().log_softmax(-1)[len(row[0]) - 1 : -1] for lm in (plain, other))
        assert kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)
    assert divergences(plain, ROWS, base=plain) == pytest.approx([0.0] * len(ROWS), abs=1e-6)
    small = divergences(plain, ROWS, base=other, budget=2 * 97 * 32)
    assert small == pytest.approx(divergences(plain, ROWS, base=other), rel=1e-5)


@torch.no_grad()
def test_a_guided_model_may_be_measured_from_another_base():
    guided, other = steered_lm(), tiny_lm("llama", seed=1).eval()
    from_own = divergences(guided, ROWS, alpha=1.0)
    assert divergences(guided, ROWS, base=guided.backbone.lm, alpha=1.0) == pytest.approx(from_own, abs=1e-5)
    assert divergences(guided, ROWS, base=other, alpha=1.0) != pytest.approx(from_own, rel=0.1)


def test_a_divergence_without_a_base_or_from_another_vocabulary_is_refused(plain, guided):
    with pytest.raises(DualHeadError, match="Give base"):
        divergences(plain, ROWS)
    other = tiny_lm("llama").eval()
    other.resize_token_embeddings(100)
    with pytest.raises(DualHeadError, match="100 logits and the model 97"):
        divergences(guided, ROWS, base=other)
