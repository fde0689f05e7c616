"""Guides that are models, on another backbone: a weak model steers a strong one, as it was trained."""

import pytest
import torch
from files import SPECIAL, WORDS, word_tokenizer, write_backbone, write_classifier, write_guides
from models import tiny_lm
from transformers import AutoModelForCausalLM

from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_model import RewardModelConfig

pytest.importorskip("peft")

IDS = torch.tensor([[1, 5, 6, 30, 31, 8], [1, 12, 7, 22, 9, 11]])
GREEDY = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LORA = LanguageModelConfig(rank=2, lora_alpha=4.0, target_modules=["q_proj", "v_proj"])
WEAK = {"steered": RewardHeadConfig(num_heads=2, head_dim=4), "off": LinearConfig()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A weak backbone with a LoRA and with heads, strong ones, and one that speaks otherwise."""
    place = tmp_path_factory.mktemp("companions")
    write_backbone(place / "weak", spread=0.2)
    write_backbone(place / "strong", hidden_size=48, layers=3, seed=1, spread=0.2)
    write_backbone(place / "padded", hidden_size=48, layers=3, seed=2, padding=7, spread=0.2)
    write_backbone(place / "swapped", seed=3, words=[*SPECIAL, *WORDS[24:], *WORDS[4:24]], spread=0.2)
    write_guides(place / "lora", place / "weak", {"g": LORA})
    write_guides(place / "guided", place / "weak", WEAK, alpha={"steered": 1.5, "off": 0.0})
    write_classifier(place / "classifier")
    return place


def logits_of(folder) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def logits_with_lora(folder, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """z of the model in a folder whose weights are W + (lora_alpha / rank) B A."""
    lm = AutoModelForCausalLM.from_pretrained(folder)
    for name, a in stored.items():
        if "lora_A" in name:
            b = stored[name.replace("lora_A", "lora_B")]
            lm.get_submodule(name.split(".lora_A")[0].removeprefix("g.")).weight.data += 4.0 / 2 * b @ a
    return lm(IDS).logits


def decodes_alike(model: AlignedModel, **alpha) -> bool:
    """Whether a cache changes nothing, greedily and with beams."""
    return all(
        torch.equal(
            model.generate(IDS, **GREEDY, **how, **alpha),
            model.generate(IDS, use_cache=False, **GREEDY, **how, **alpha),
        )
        for how in ({}, {"num_beams": 3})
    )


# ---- a LoRA on the old backbone ----------------------------------------------------------------------------


def test_a_lora_goes_on_speaking_with_the_model_it_was_trained_on(place, tmp_path):
    model = AlignedModel.from_pretrained(place / "lora")
    stored = {name: value.detach().clone() for name, value in model.stored().items()}
    model.switch_backbone(place / "strong")
    weak, strong = logits_with_lora(place / "weak", stored), logits_of(place / "strong")
    assert (weak - logits_of(place / "weak")).abs().max() > 0.1
    assert torch.equal(model(IDS, alpha=0.0).logits, strong)
    for alpha in (1.0, -0.4):
        torch.testing.assert_close(model(IDS, alpha=alpha).logits, strong + alpha * weak, **CLOSE)
    assert model.config.guides["g"]["config"]["model"] == str(place / "weak")
    assert model.config.get_text_config().num_hidden_layers == 3 + 2
    assert decodes_alike(model, alpha=[1.0, 0.5])
    model.save_pretrained(tmp_path)
    assert torch.equal(AlignedModel.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)
    model.switch_backbone(place / "weak")  # and where it came from, it shares the backbone's weights again
    home = AlignedModel.from_pretrained(place / "lora")
    assert torch.equal(model(IDS).logits, home(IDS).logits)


def test_a_weak_model_never_speaks_for_logits_of_no_token(place):
    model = AlignedModel.from_pretrained(place / "lora", backbone=place / "padded", switch=True)
    base = model(IDS, alpha=0.0).logits
    delta = model(IDS, alpha=1.0).logits - base
    assert (delta[..., -7:] <= delta[..., :-7].amin(-1, keepdim=True) + 1e-5).all()
    torch.testing.assert_close(delta[..., :-7], logits_with_lora(place / "weak", model.stored()), **CLOSE)


def test_a_part_of_a_backbone_whose_place_is_unknown_cannot_move(place):
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"g": LORA}, tokenizer=word_tokenizer())
    with pytest.raises(DualHeadError, match=r"part of its backbone, whose place was not recorded\. Save the backbone"):
        model.switch_backbone(place / "strong")
    model = AlignedModel.from_backbone(str(place / "weak"), {"g": RewardModelConfig(tune="lora", rank=2)})
    with pytest.raises(DualHeadError, match=r"Only one in a folder or on the hub can move"):
        model.switch_backbone(place / "strong")


def test_a_model_cannot_be_moved_by_a_map_nor_through_an_adapter(place):
    model = AlignedModel.from_pretrained(place / "lora")
    with pytest.raises(DualHeadError, match=r"reads token ids, so a map of the vocabulary cannot.*45 of 49 token ids"):
        model.switch_backbone(place / "swapped", vocab_map=True)
    with pytest.raises(DualHeadError, match="no use for an adapter"):
        model.switch_backbone(place / "strong", adapter=True)


# ---- models with a place of their own ----------------------------------------------------------------------


def test_a_reward_model_of_its_own_scores_for_whatever_backbone(place):
    config = RewardModelConfig(model=str(place / "classifier"), k=4)
    model = AlignedModel.from_backbone(str(place / "weak"), {"g": config}, tokenizer=word_tokenizer())
    model.switch_backbone(place / "strong")
    fresh = AlignedModel.from_backbone(str(place / "strong"), {"g": config})
    assert torch.equal(model(IDS, alpha=0.7).logits, fresh(IDS, alpha=0.7).logits)
    assert decodes_alike(model, alpha=0.7)


# ---- weak guided steers strong (D12 b) ---------------------------------------------------------------------


@pytest.fixture
def weak_to_strong(place) -> AlignedModel:
    """A strong backbone steered by what heads add to a weak one."""
    config = LanguageModelConfig(model=str(place / "guided"), against="unguided", tune="none")
    return AlignedModel.from_backbone(str(place / "strong"), {"weak": config}, tokenizer=word_tokenizer())


def test_a_weak_guided_model_steers_a_strong_one(weak_to_strong, place):
    weak = AlignedModel.from_pretrained(place / "guided")
    added = weak(IDS, alpha={"steered": 1.5}).logits - logits_of(place / "weak")
    assert added.abs().max() > 0.1
    strong = logits_of(place / "strong")
    assert torch.equal(weak_to_strong(IDS, alpha=0.0).logits, strong)
    for alpha in (1.0, [0.5, -2.0]):
        by_hand = strong + torch.tensor(alpha).view(-1, 1, 1) * added
        torch.testing.assert_close(weak_to_strong(IDS, alpha=alpha).logits, by_hand, **CLOSE)


def test_a_weak_guided_model_keeps_its_gates_keys_in_the_same_cache(weak_to_strong, place):
    assert weak_to_strong.config.get_text_config().num_hidden_layers == 3 + 2 + 1  # strong, weak, the weak one's gate
    assert decodes_alike(weak_to_strong, alpha=[1.0, 0.5])
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    alone = weak_to_strong.generate(IDS[:1, 2:], alpha=1.0, **GREEDY)
    padded = weak_to_strong.generate(IDS, attention_mask=mask, alpha=1.0, **GREEDY)
    assert torch.equal(padded[0, 2:], alone[0])
    static = weak_to_strong.generate(IDS, attention_mask=mask, alpha=1.0, cache_implementation="static", **GREEDY)
    assert torch.equal(static, padded)


def test_a_weak_guided_model_is_saved_as_where_it_is(weak_to_strong, place, tmp_path):
    weak_to_strong.save_pretrained(tmp_path)
    assert torch.equal(AlignedModel.from_pretrained(tmp_path)(IDS).logits, weak_to_strong(IDS).logits)
    assert (tmp_path / "model.safetensors").stat().st_size < 200  # nothing is its own


def test_against_unguided_needs_a_model_with_guides(place):
    config = LanguageModelConfig(model=str(place / "weak"), against="unguided", tune="none")
    with pytest.raises(DualHeadError, match="needs a checkpoint of guides"):
        AlignedModel.from_backbone(str(place / "strong"), {"weak": config})


def test_a_model_that_is_gone_is_named_with_the_remedy(place):
    config = LanguageModelConfig(model=str(place / "gone"), tune="none")
    with pytest.raises(DualHeadError, match=r"needs the model '.*gone'.*Put it back"):
        AlignedModel.from_backbone(str(place / "strong"), {"weak": config})
