"""Sampled replies come for every prompt, repeat by seed, and can be taken up again."""

import pytest

from dual_head import AlignedModel
from dual_head.data import Cut
from dual_head.demo import TOY_BACKBONE
from dual_head.model.pretrained import load_tokenizer
from dual_head.replies import sample
from dual_head.replies.sample import sample_replies

PROMPTS = ["user : name a place assistant :", "user : write a greeting please assistant :", "user : hello assistant :"]


@pytest.fixture(scope="module")
def model():
    return AlignedModel.from_backbone(str(TOY_BACKBONE), {})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(TOY_BACKBONE))


@pytest.fixture(params=["in a running batch", "in padded batches"], autouse=True)
def servable(request, monkeypatch):
    """Both ways: that of a model which can be served on a processor, and that of any other."""
    if request.param == "in padded batches":
        monkeypatch.setattr(sample, "sampling_in_a_batch", lambda _: None)


def sampled(model, tokenizer, **options):
    return dict(sample_replies(model, tokenizer, PROMPTS, count=2, max_new_tokens=6, rows=4, **options))


def test_every_prompt_has_its_replies_and_a_seed_repeats_them(model, tokenizer):
    replies = sampled(model, tokenizer, seed=3)
    assert sorted(replies) == [0, 1, 2]
    assert all(len(texts) == 2 for texts in replies.values())
    assert replies == sampled(model, tokenizer, seed=3) != sampled(model, tokenizer, seed=4)


def test_what_is_done_is_left_out_and_moves_nothing_else(model, tokenizer):
    replies = sampled(model, tokenizer)
    for index in range(3):
        rest = sampled(model, tokenizer, done={index})
        assert rest == {i: texts for i, texts in replies.items() if i != index}


def test_a_reply_at_the_limit_is_cut(model, tokenizer):
    replies = dict(sample_replies(model, tokenizer, PROMPTS, count=8, max_new_tokens=2))
    assert all(isinstance(text, Cut) for texts in replies.values() for text in texts)
    ended = dict(sample_replies(model, tokenizer, PROMPTS, count=8, max_new_tokens=64))
    assert any(not isinstance(text, Cut) for texts in ended.values() for text in texts)


def test_a_reply_that_ends_with_any_end_of_the_model_is_whole(tokenizer):
    model = AlignedModel.from_backbone(str(TOY_BACKBONE), {})
    (dot,) = tokenizer(".", add_special_tokens=False).input_ids
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, dot]
    replies = dict(sample_replies(model, tokenizer, PROMPTS, count=4, max_new_tokens=64))
    texts = [text for group in replies.values() for text in group]
    assert not any(isinstance(text, Cut) or "." in text for text in texts)


def test_no_more_replies_than_rows_are_sampled_at_a_time(model, tokenizer, monkeypatch):
    sizes, generate = [], sample.generate_replies
    monkeypatch.setattr(sample, "sampling_in_a_batch", lambda _: None)
    monkeypatch.setattr(
        sample,
        "generate_replies",
        lambda m, t, prompts, **more: sizes.append(len(prompts)) or generate(m, t, prompts, **more),
    )
    dict(sample_replies(model, tokenizer, PROMPTS, count=5, max_new_tokens=2, rows=2))
    assert sizes == [2, 2, 1] * 3


def test_a_large_seed_is_taken(model, tokenizer):
    assert sampled(model, tokenizer, seed=2**32 - 1) == sampled(model, tokenizer, seed=2**32 - 1)
