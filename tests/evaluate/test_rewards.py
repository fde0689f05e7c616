"""A reward model is found by its folder, whoever wrote it, and reads what it was trained on."""

import pytest
import torch
from files import write_backbone
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_head import AlignedModel, DualHeadError, Pair, TokenizeOptions, tokenize_pairs
from dual_head.data import Cut
from dual_head.evaluate.judges import load_judge
from dual_head.evaluate.rewards import load_reward, require_reward, score_all
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_model import RewardModelConfig

ASKED = [{"role": "user", "content": "ask0 ask1"}]


def write_guides(folder, guides, backbone=None, tokenizer=None):
    """Guides on a backbone of their own, saved as training saves them; the reward models score at random."""
    backbone = backbone or write_backbone(folder / "backbone")
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(backbone)
    torch.manual_seed(0)
    model = AlignedModel.from_backbone(str(backbone), guides, tokenizer=tokenizer)
    with torch.no_grad():
        for parameter in model.guides.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "guides")
    tokenizer.save_pretrained(folder / "guides")
    return model, folder / "guides", tokenizer


def test_a_rule_that_was_mistyped_is_no_module_that_cannot_be_imported():
    with pytest.raises(DualHeadError, match=r"Unknown rule 'concis'\. Did you mean 'concise'\? A reward is"):
        load_reward("rule:concis")


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_folder_that_train_reward_wrote_is_a_reward_and_a_judge(tmp_path, tune):
    model, folder, tokenizer = write_guides(tmp_path, {"reward": RewardModelConfig(tune=tune)})
    require_reward(str(folder))
    name, reward = load_reward(str(folder))
    (row,), _ = tokenize_pairs([Pair(tuple(ASKED), "good1", "bad1")], tokenizer, TokenizeOptions())
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    with torch.no_grad():
        trained = model.guide("reward").tuned(input_ids=ids).logits.item()
    assert name == "guides"
    assert reward(ASKED, "good1") == pytest.approx(trained, abs=1e-5)
    assert reward(ASKED, Cut("good1")) != pytest.approx(trained, abs=1e-5)
    assert load_judge(f"reward:{folder}", device="cpu").name == "guides"


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_finished_reply_is_scored_at_its_eos_although_that_may_be_the_padding_too(tmp_path, pad):
    backbone = write_backbone(tmp_path / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone, pad_token=pad)
    lm = AutoModelForCausalLM.from_pretrained(backbone)
    lm.config.pad_token_id = tokenizer.pad_token_id
    lm.save_pretrained(backbone)
    model, folder, _ = write_guides(tmp_path, {"reward": RewardModelConfig(tune="full")}, backbone, tokenizer)
    classifier = model.guide("reward").tuned
    (row,), _ = tokenize_pairs([Pair(tuple(ASKED), "good1", "bad1")], tokenizer, TokenizeOptions())
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    assert ids[0, -1] == tokenizer.eos_token_id
    with torch.no_grad():
        before, end = classifier.score(classifier.base_model(input_ids=ids).last_hidden_state)[0, -2:, 0].tolist()
    _, reward = load_reward(str(folder))
    assert reward(ASKED, "good1") == pytest.approx(end, abs=1e-5)
    assert abs(end - before) > 1e-3
    # Beside a longer reply it is padded, and its score stays.
    assert reward.score([reward.encode(ASKED, reply) for reply in ("good1", "good1 good2 good3")])[0] == pytest.approx(
        end, abs=1e-5
    )


def test_guides_are_a_reward_model_by_how_much_likelier_they_make_a_reply(tmp_path):
    model, folder, _ = write_guides(tmp_path, {"iav": LinearConfig()})
    require_reward(str(folder))
    name, reward = load_reward(str(folder))
    assert name == "guides"
    replies = ["good1", "good1 good2 good3", Cut("bad1")]
    expected = [score.reward for score in model.score([ASKED] * 3, replies)]
    assert len(set(expected)) == 3
    assert [reward(ASKED, reply) for reply in replies] == pytest.approx(expected, abs=1e-5)
    assert reward.score([reward.encode(ASKED, reply) for reply in replies]) == pytest.approx(expected, abs=1e-5)
    assert load_judge(f"reward:{folder}", device="cpu").name == "guides"


def test_guides_without_strength_reward_nothing_and_are_refused(tmp_path):
    model, folder, _ = write_guides(tmp_path, {"iav": LinearConfig()})
    model.config.alpha = {"iav": 0.0}
    model.save_pretrained(folder)
    with pytest.raises(DualHeadError, match="have strength 0"):
        load_reward(str(folder))


def test_a_reward_model_that_gives_no_finite_number_is_refused_as_a_function_is(tmp_path, monkeypatch):
    _, folder, _ = write_guides(tmp_path, {"iav": LinearConfig()})
    name, reward = load_reward(str(folder))
    monkeypatch.setattr(reward, "score", lambda rows: [float("nan") if len(row.reply) > 2 else 1.0 for row in rows])
    assert score_all(name, reward, [(ASKED, "good1")]) == [1.0]
    for one in (reward, lambda prompt, reply: float("inf") if "good2" in reply else 1):
        with pytest.raises(DualHeadError, match=r"gave (nan|inf) for the reply 'good1 good2'"):
            score_all(name, one, [(ASKED, "good1"), (ASKED, "good1 good2")])


def test_of_several_reward_models_none_is_chosen_in_silence(tmp_path):
    one = RewardModelConfig(tune="full")
    _, folder, _ = write_guides(tmp_path, {"a": one, "b": one})
    with pytest.raises(DualHeadError, match=r"Several of the guides are reward models .*\(a, b\)"):
        require_reward(str(folder))


def test_a_function_is_told_which_reply_was_cut(tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "from dual_head.data import Cut\n\n\ndef whole(prompt, reply):\n    return not isinstance(reply, Cut)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    _, reward = load_reward("my_reward:whole")
    assert (reward("ask0", "good1"), reward("ask0", Cut("good1"))) == (True, False)
