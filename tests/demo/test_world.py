"""The demonstration world: its rewards worked out by hand, and what must hold of everything it draws."""

from random import Random
from statistics import fmean

import pytest

from dual_head.demo import topics
from dual_head.demo.world import (
    MAX_REPLY_TOKENS,
    Request,
    all_requests,
    best_reply,
    build_tokenizer,
    corpus,
    is_refusal,
    parse_request,
    preference_rows,
    reward,
    sample_reply,
    sample_requests,
    steps_of,
)
from dual_head.errors import DualHeadError

BREAD = Request(text="how do i bake bread ?", harmful=False, topic="bake bread")
BICYCLE = Request(text="how do i steal a bicycle ?", harmful=True, topic="steal a bicycle")


@pytest.mark.parametrize(
    ("request_", "reply", "helpful", "harmless", "polite", "length", "total"),
    [
        # two right steps, an opening and a closing
        (BREAD, " hello ! first knead the dough . heat the oven . take care !", 2, 0, 1, 0, 3),
        # one right step, one of making coffee
        (BREAD, " knead the dough . grind the beans .", 0.5, 0, 0, 0, 0.5),
        # one right step, one of a harmful topic: wrong for half a point, harmful for one and a half
        (BREAD, " knead the dough . then wait until dark .", 0.5, -1.5, 0, 0, -1),
        # refuses what is harmless
        (BREAD, " i would rather not say .", -2, 0, 0, 0, -2),
        # seven tokens of filler, and rude twice
        (BREAD, " my uncle once tried this . stop wasting my time .", 0, 0, -1, -0.30, -1.30),
        (BREAD, " stop wasting my time . stop wasting my time .", 0, 0, -2, 0, -2),
        # the second time a step is given, and the second opening, only take time: 4 + 2 tokens
        (BREAD, " hello ! knead the dough . knead the dough . hello !", 1, 0, 0.5, -0.30, 1.20),
        # refuses what is harmful
        (BICYCLE, " good question . that is against my rules .", -2, 2, 0.5, 0, 2.5),
        # helps with it: helpful, and not counted in the total
        (BICYCLE, " wait until dark . pedal away fast . paint it purple .", 3, -4.5, 0, 0, -4.5),
        # refuses, then helps all the same: nothing gained for refusing
        (BICYCLE, " i will not answer that . wait until dark .", -1, -1.5, 0, 0, -1.5),
        # refuses, with a harmless step: still a refusal
        (BICYCLE, " i will not answer that . knead the dough .", -2.5, 2, 0, 0, 2),
        # says nothing of use
        (BICYCLE, " good luck !", 0, 0, 0.5, 0, 0.5),
    ],
)
def test_reward_is_what_the_rules_give_by_hand(request_, reply, helpful, harmless, polite, length, total):
    points = reward(request_, reply)
    assert (points.helpful, points.harmless, points.polite) == (helpful, harmless, polite)
    assert points.length == pytest.approx(length)
    assert points.total == pytest.approx(total)


@pytest.mark.parametrize(
    ("reply", "idle_tokens"),
    [
        ("", 0),
        (" knead the dough", 3),  # unfinished
        (" the the oven oven !", 5),
        (" . . .", 3),
        (" first then knead the dough .", 6),
        (" user : how do i bake bread ? assistant :", 10),
        (" Knead the dough .", 4),  # the world is lower case
    ],
)
def test_garbage_earns_nothing_and_costs_its_tokens(reply, idle_tokens):
    points = reward(BREAD, reply)
    assert (points.helpful, points.harmless, points.polite) == (0, 0, 0)
    assert points.length == pytest.approx(-0.05 * idle_tokens)


def test_what_follows_the_end_of_a_reply_is_not_read():
    assert reward(BREAD, "<s> heat the oven . </s> stop wasting my time . <pad>") == reward(BREAD, "heat the oven .")


def test_the_objectives_are_parts_of_the_reward():
    points = reward(BICYCLE, " wait until dark . take care !")
    assert [points.of(name) for name in ("helpful", "harmless", "overall")] == [1, -1.5, -1]
    with pytest.raises(DualHeadError, match="Did you mean 'harmless'"):
        points.of("harmles")


def test_a_refusal_is_a_finished_sentence_of_refusal():
    assert is_refusal(" sorry , i can not help with that .")
    assert not is_refusal(" sorry , i can not help with that")
    assert not is_refusal(" hello ! knead the dough .")


def test_steps_are_found_with_and_without_a_connector():
    assert steps_of(" first knead the dough . grind the beans .") == {"knead the dough", "grind the beans"}


def test_helpful_and_harmless_contradict_each_other_on_harmful_requests():
    helps, refuses = (reward(BICYCLE, r) for r in (" wait until dark .", " i will not answer that ."))
    assert helps.helpful > refuses.helpful
    assert helps.harmless < refuses.harmless


def test_no_reply_of_the_policy_beats_the_best_reply():
    rng = Random(0)
    for asked in all_requests("test"):
        best = reward(asked, best_reply(asked)).total
        assert best == (3 if asked.harmful else 6)
        assert reward(asked, sample_reply(asked, rng)).total <= best


def test_the_policy_leaves_much_to_gain():
    rng = Random(0)
    points = [reward(asked, sample_reply(asked, rng)).total for asked in sample_requests(5000, seed=0)]
    assert abs(fmean(points)) < 0.2


def test_every_step_belongs_to_one_topic_and_every_topic_has_five():
    assert all(len(steps) == 5 for steps in topics.STEPS.values())
    assert len(topics.TOPIC_OF) == 5 * len(topics.STEPS)


def test_borderline_topics_share_words_with_harmful_ones_and_plain_topics_do_not():
    telling = {word for topic in topics.HARMFUL for word in topic.split()} - {"a", "the", "on", "up", "into"}
    assert sum(bool(telling & set(topic.split())) for topic in topics.BORDERLINE) >= 6
    assert not any(telling & set(topic.split()) for topic in topics.PLAIN)


def test_train_and_test_requests_are_disjoint_and_share_topics_and_phrasings():
    train, test = all_requests("train"), all_requests("test")
    assert not {asked.text for asked in train} & {asked.text for asked in test}
    assert len({asked.text for asked in train + test}) == len(train) + len(test) == 36 * 8 * 6
    assert len(train) == 3 * len(test)
    for part in (train, test):
        assert {asked.topic for asked in part} == set(topics.STEPS)
        assert len({asked.text.partition(asked.topic)[0] for asked in part}) == len(topics.PHRASINGS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_draws_stay_in_their_split(split):
    known = set(all_requests(split))
    assert set(sample_requests(300, seed=1, split=split)) <= known
    assert {parse_request(text) for text in corpus(300, seed=1, split=split)} <= known
    assert {parse_request(row["prompt"]) for row in preference_rows(300, seed=1, split=split)} <= known


@pytest.mark.parametrize("draw", [sample_requests, corpus, preference_rows])
def test_draws_depend_on_the_seed_and_on_nothing_else(draw):
    first = draw(50, seed=3)
    draw(7, seed=4)
    assert draw(50, seed=3) == first
    assert draw(50, seed=4) != first
    assert draw(20, seed=3) == first[:20]


@pytest.mark.parametrize("objective", ["overall", "helpful", "harmless"])
def test_the_chosen_reply_has_more_points_of_the_objective(objective):
    rows = preference_rows(500, seed=0, objective=objective)
    assert len(rows) == 500
    for row in rows:
        asked = parse_request(row["prompt"])
        better, worse = (reward(asked, row[side]).of(objective) for side in ("chosen", "rejected"))
        assert better > worse


def test_the_better_reply_comes_first_as_often_as_second():
    # sampled with one generator, so a bias would mean that ties or order leak into the rows
    rows = preference_rows(2000, seed=0)
    longer = fmean(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert 0.3 < longer < 0.7


def test_requests_and_replies_are_short():
    assert max(len(asked.text.split()) for asked in all_requests("train") + all_requests("test")) <= 16
    replies = [text.partition("assistant :")[2] for text in corpus(3000, seed=0)]
    assert max(len(reply.split()) for reply in replies) < MAX_REPLY_TOKENS
    assert min(len(reply.split()) for reply in replies) > 0


def test_a_request_is_found_again_in_its_prompt_and_in_a_whole_text():
    for asked in all_requests("test"):
        assert parse_request(asked.prompt) == asked
        assert parse_request(f"<s> {asked.prompt}{best_reply(asked)} user : again ? assistant :") == asked


def test_an_unknown_request_is_refused_with_an_example():
    with pytest.raises(DualHeadError, match="Give a prompt such as"):
        parse_request("user : how do i fly ? assistant :")
    with pytest.raises(DualHeadError, match="Did you mean 'test'"):
        sample_requests(1, seed=0, split="tests")
    with pytest.raises(DualHeadError, match="Unknown objective"):
        preference_rows(1, seed=0, objective="funny")


class TestTokenizer:
    tokenizer = build_tokenizer()

    def test_has_a_small_vocabulary_with_the_special_tokens_first(self):
        assert len(self.tokenizer) <= 512
        assert self.tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<s>", "</s>", "<unk>"]
        assert self.tokenizer.pad_token_id == 0
        assert self.tokenizer.eos_token == "</s>"

    def test_round_trip_is_the_identity_and_leaves_every_reward_as_it_was(self):
        for text in corpus(500, seed=2) + [r.prompt + best_reply(r) for r in all_requests("test")]:
            ids = self.tokenizer(text).input_ids
            assert ids[0] == self.tokenizer.bos_token_id
            assert self.tokenizer.unk_token_id not in ids
            back = self.tokenizer.decode(ids, skip_special_tokens=True)
            assert back == text
            asked, reply = parse_request(text), text.partition("assistant :")[2]
            tokens = self.tokenizer(reply, add_special_tokens=False).input_ids
            assert reward(asked, self.tokenizer.decode(tokens)) == reward(asked, reply)

    def test_tokens_of_a_text_are_those_of_its_prompt_then_those_of_its_reply(self):
        for row in preference_rows(200, seed=0):
            prompt = self.tokenizer(row["prompt"]).input_ids
            reply = self.tokenizer(row["chosen"], add_special_tokens=False).input_ids
            assert self.tokenizer(row["prompt"] + row["chosen"]).input_ids == prompt + reply

    def test_chat_template_writes_the_prompt(self):
        messages = [{"role": "user", "content": BREAD.text}]
        written = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert written == BREAD.prompt

    def test_an_unknown_word_becomes_unk(self):
        assert self.tokenizer("zebra", add_special_tokens=False).input_ids == [self.tokenizer.unk_token_id]
