"""The reference job: the same pairs from the same seed, of the lengths that were asked for."""

import sys

import job
import pytest


def sizes(row):
    return tuple(len(row[name]) for name in job.COLUMNS)


def test_full_pairs_fill_every_position():
    assert {sizes(row) for row in job.pairs("full", 3)} == {(256, 256, 256)}


def test_hh_pairs_have_the_committed_lengths_and_none_above_the_cap():
    rows = job.pairs("hh", 512)
    assert sorted(map(sizes, rows)) == sorted(job.capped(triple, 512) for triple in job.lengths())
    assert all(prompt + max(chosen, rejected) <= 512 for prompt, chosen, rejected in map(sizes, rows))


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others():
    assert job.pairs("hh", 4, 1) == job.pairs("hh", 4, 1) != job.pairs("hh", 4, 2)


def test_a_pair_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'full' or 'hh'"):
        job.pairs("real", 1)


@pytest.mark.parametrize(
    ("triple", "kept"),
    [
        ((100, 50, 60), (100, 50, 60)),
        ((600, 50, 60), (452, 50, 60)),  # the prompt gives way to the longer response
        ((600, 50, 400), (256, 50, 256)),  # which keeps at most half
        ((10, 800, 5), (10, 502, 5)),  # unless the prompt leaves more
    ],
)
def test_long_pairs_are_cut_to_the_cap(triple, kept):
    assert job.capped(triple, 512) == kept


def test_padding_is_on_the_right_and_chosen_come_first():
    batch = job.padded([{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}], length=5)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [5, 6, 8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert batch["response_mask"].tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_a_sequence_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="A sequence of 3 tokens does not fit in 2"):
        job.padded([{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8]}], length=2)


def test_models_are_random_by_seed_untied_and_never_end_a_reply():
    lm, same, other = (job.language_model(seed, vocab_size=64, hidden_size=16, layers=1) for seed in (0, 0, 1))
    assert lm.lm_head.weight.equal(same.lm_head.weight)
    assert not lm.lm_head.weight.equal(other.lm_head.weight)
    assert not lm.lm_head.weight.equal(lm.model.embed_tokens.weight)
    assert lm.generation_config.eos_token_id is None
    assert job.reward_model(vocab_size=64, hidden_size=16, layers=1).score.weight.shape == (1, 16)


def test_lengths_are_read_from_pairs_that_differ_in_the_last_reply_only(shared_data):
    pytest.importorskip("sentencepiece")
    assert job.sampled_lengths(shared_data, 512, seed=0) == job.lengths()


def test_making_the_lengths_needs_a_folder_of_data(monkeypatch, capsys):
    monkeypatch.delenv("DUAL_HEAD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(SystemExit):
        job.main()
    assert "--data DIR" in capsys.readouterr().err
