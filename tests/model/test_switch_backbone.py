"""Guides on another backbone than theirs: what they say there, by hand, and what is refused."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from files import SPECIAL, WORDS, word_tokenizer, write_backbone, write_guides
from models import tiny_lm
from transformers import AutoModelForCausalLM

from dual_head import AlignedModel, DualHeadError, PairCollator, RewardHeadConfig, method
from dual_head.backbone.features import Features
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.train.step import GuidedLoss

IDS = torch.tensor([[1, 5, 6, 30, 31, 8], [1, 12, 7, 22, 9, 11]])
GREEDY = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GUIDES = {
    "linear": LinearConfig(),
    "reward_head": RewardHeadConfig(num_heads=2, head_dim=4),
    "multilayer": MultilayerConfig(width=24),
}
# As many tokens, under the same ids, of which half mean others: LLaMA and Mistral.
SWAPPED = [*SPECIAL, *WORDS[24:], *WORDS[4:24]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone, the guides of every kind trained on it, and other backbones."""
    place = tmp_path_factory.mktemp("switch")
    write_backbone(place / "old", spread=0.2)
    write_backbone(place / "wide", hidden_size=48, layers=4, seed=1, spread=0.2)
    write_backbone(place / "padded", hidden_size=48, layers=4, seed=2, padding=7, spread=0.2)
    write_backbone(place / "twin", seed=3, spread=0.2)
    write_backbone(place / "swapped", seed=4, words=SWAPPED, spread=0.2)
    write_backbone(
        place / "fewer", hidden_size=48, seed=5, words=[*SPECIAL, "new", *reversed(WORDS[10:40])], spread=0.2
    )
    for kind, config in {**GUIDES, "hidden": HiddenConfig(rank=4)}.items():
        write_guides(place / kind, place / "old", {"g": config})
    return place


def load(folder) -> AlignedModel:
    return AlignedModel.from_pretrained(folder)


def switched(place, kind: str, other: str, **options) -> AlignedModel:
    model = load(place / kind)
    model.switch_backbone(place / other, **options)
    return model


def delta_by_hand(model: AlignedModel, kind: str) -> torch.Tensor:
    """The guide of a model, applied to what its backbone of 4 layers says, each vector pooled to 32."""
    hidden = model.backbone.lm(IDS, output_hidden_states=True).hidden_states
    narrow = [F.adaptive_avg_pool1d(x, 32) for x in hidden]
    guide = model.guide("g")
    if kind == "linear":
        return narrow[-1] @ guide.head.up.weight.T
    if kind == "reward_head":
        gate = guide.causal_gate(Features(narrow[-1]), None).sigmoid()
        return gate[..., None] * (narrow[-1] @ guide.difference.up.weight.T)
    assert guide.hidden_layers == (1, 2)  # of 2, so that they are 2 and 4 of 4
    layers = [F.adaptive_avg_pool1d(F.rms_norm(narrow[i], (32,), eps=1e-6), 24) for i in (2, 4)]
    return guide.head(guide.mlp(guide.fusion(torch.cat(layers, -1)).relu()).relu())


# ---- what a moved guide says -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GUIDES)
def test_a_guide_says_on_a_wider_and_deeper_backbone_what_it_says_of_pooled_hidden_states(kind, place):
    model = switched(place, kind, "wide")
    lm = AutoModelForCausalLM.from_pretrained(place / "wide")
    base = lm(IDS).logits
    assert torch.equal(model(IDS, alpha=0.0).logits, base)
    delta = delta_by_hand(model, kind)
    assert delta.abs().max() > 0.1
    for alpha in (1.0, -0.5):
        torch.testing.assert_close(model(IDS, alpha=alpha).logits, base + alpha * delta, **CLOSE)


@pytest.mark.parametrize("kind", GUIDES)
def test_a_moved_guide_decodes_with_a_cache_as_without_one(kind, place):
    model = switched(place, kind, "wide")
    for how in ({}, {"num_beams": 3}):
        cached = model.generate(IDS, alpha=[1.0, 0.4], **GREEDY, **how)
        assert torch.equal(cached, model.generate(IDS, alpha=[1.0, 0.4], use_cache=False, **GREEDY, **how))


@pytest.mark.parametrize("kind", GUIDES)
def test_a_moved_guide_leaves_logits_of_no_token_alone(kind, place):
    model = switched(place, kind, "padded")
    said, base = model(IDS, alpha=1.0).logits, model(IDS, alpha=0.0).logits
    assert said.shape[-1] == len(WORDS) + 7
    assert torch.equal(said[..., -7:], base[..., -7:])
    torch.testing.assert_close(said[..., :-7], base[..., :-7] + delta_by_hand(model, kind), **CLOSE)


def test_a_switch_is_in_place_and_says_how_tokenizers_compare(place):
    model = load(place / "linear")
    found = model.switch_backbone(str(place / "wide"))
    assert (found.same, str(found)) == (True, f"the same tokenizer ({len(WORDS)} tokens)")
    assert model.config.backbone_name_or_path == str(place / "wide")
    assert model.config.backbone_config.num_hidden_layers == 4
    assert isinstance(model.generate("ask0", tokenizer=word_tokenizer(), max_new_tokens=2), str)


def test_a_guide_that_edits_hidden_states_moves_to_its_own_width_only(place):
    with pytest.raises(DualHeadError, match=r"'g' edits hidden states of width 32, and this backbone's are 48 wide"):
        switched(place, "hidden", "wide")
    with pytest.raises(DualHeadError, match="no use for an adapter"):
        switched(place, "hidden", "twin", adapter=True)
    model = switched(place, "hidden", "twin")
    lm = AutoModelForCausalLM.from_pretrained(place / "twin")
    hidden = lm.base_model(IDS).last_hidden_state
    by_hand = lm.lm_head(hidden + 0.5 * hidden @ model.guide("g").change.matrix().T)
    torch.testing.assert_close(model(IDS, alpha=0.5).logits, by_hand, **CLOSE)


# ---- saving and loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GUIDES)
@pytest.mark.parametrize("options", [{}, {"adapter": True}])
def test_what_was_moved_and_saved_is_loaded_without_moving(kind, options, place, tmp_path):
    model = switched(place, kind, "wide", **options)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(IDS, alpha=0.7).logits, model(IDS, alpha=0.7).logits)
    composed = AlignedModel.from_backbone(str(place / "wide"), {})
    composed.attach("other", tmp_path)
    assert torch.equal(composed(IDS, alpha=0.7).logits, model(IDS, alpha=0.7).logits)


def test_loading_onto_another_backbone_is_loading_and_switching(place, caplog):
    with pytest.raises(DualHeadError, match=r"hidden_size 32 against 48.*switch_backbone"):
        AlignedModel.from_pretrained(place / "reward_head", backbone=place / "wide")
    with caplog.at_level(logging.WARNING):
        model = AlignedModel.from_pretrained(place / "reward_head", backbone=place / "wide", switch=True)
    assert "the same tokenizer" in caplog.text
    assert torch.equal(model(IDS).logits, switched(place, "reward_head", "wide")(IDS).logits)
    same = AlignedModel.from_pretrained(place / "reward_head", backbone=place / "old", switch=True)
    assert torch.equal(same(IDS).logits, load(place / "reward_head")(IDS).logits)


def test_how_to_move_is_said_only_where_something_may_move(place):
    for option in ({"vocab_map": True}, {"adapter": True}):
        with pytest.raises(DualHeadError, match="add switch=True"):
            AlignedModel.from_pretrained(place / "linear", **option)


def test_an_explicit_dtype_is_that_of_moved_guides_too(place):
    options = {"backbone": place / "wide", "switch": True, "adapter": True, "dtype": torch.bfloat16}
    model = AlignedModel.from_pretrained(place / "reward_head", **options)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(IDS, alpha=1.0).logits.isfinite().all()


def test_there_and_back_again_is_where_it_began(place):
    model = switched(place, "reward_head", "wide")
    model.switch_backbone(place / "old")
    assert torch.equal(model(IDS).logits, load(place / "reward_head")(IDS).logits)
    assert not model.transfers
    model.switch_backbone(place / "padded")
    assert torch.equal(model(IDS).logits, switched(place, "reward_head", "padded")(IDS).logits)


# ---- tokens that differ ------------------------------------------------------------------------------------


def test_other_tokens_under_the_same_ids_are_refused_with_counts_and_examples(place):
    model = load(place / "linear")
    before = model(IDS).logits
    said = rf"{len(WORDS) - 4} of {len(WORDS)} token ids mean other tokens \(for example 4: 'good0' there, 'ask4' here"
    with pytest.raises(DualHeadError, match=said + r".*\(100\.0%\) exist in both\..*vocab_map"):
        model.switch_backbone(place / "swapped")
    assert torch.equal(model(IDS).logits, before)
    with pytest.raises(DualHeadError, match=said):
        AlignedModel.from_pretrained(place / "linear", backbone=place / "swapped", switch=True)


@pytest.mark.parametrize(("other", "coverage"), [("swapped", 1.0), ("fewer", 34 / 35)])
def test_a_map_gives_each_token_what_the_guide_says_of_the_same_string(other, coverage, place, tmp_path):
    model = load(place / "linear")
    found = model.switch_backbone(place / other, vocab_map=True)
    assert (found.same, found.coverage) == (False, pytest.approx(coverage))
    ids = IDS.clamp_max(34)
    hidden = model.backbone.lm.base_model(ids).last_hidden_state
    narrow = hidden if hidden.shape[-1] == 32 else F.adaptive_avg_pool1d(hidden, 32)
    said = narrow @ model.guide("g").head.up.weight.T
    here = word_tokenizer(SWAPPED if other == "swapped" else [*SPECIAL, "new", *reversed(WORDS[10:40])])
    by_hand = torch.stack(
        [
            said[..., WORDS.index(token)] if token in WORDS else torch.zeros(ids.shape)
            for token in here.convert_ids_to_tokens(range(len(here)))
        ],
        -1,
    )
    torch.testing.assert_close(model(ids).logits, model(ids, alpha=0.0).logits + by_hand, **CLOSE)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(ids).logits, model(ids).logits)


def test_a_second_move_maps_through_the_first(place):
    model = switched(place, "linear", "fewer", vocab_map=True)
    model.switch_backbone(place / "swapped", vocab_map=True)
    model.switch_backbone(model.backbone.lm)  # to the same tokenizer: still not the guide's own ids
    weight = model.guide("g").head.up.weight
    said = model.backbone.lm.base_model(IDS).last_hidden_state @ weight.T
    delta = model(IDS).logits - model(IDS, alpha=0.0).logits
    for i, word in enumerate(SWAPPED):
        kept = word in (*SPECIAL, *WORDS[10:40])  # "fewer" knows no others, so they are lost on the way
        by_hand = said[..., WORDS.index(word)] if kept else torch.zeros(IDS.shape)
        torch.testing.assert_close(delta[..., i], by_hand, **CLOSE)


def test_a_tokenizer_that_is_nowhere_or_not_the_guides_is_asked_for(place):
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"g": LinearConfig()}, tokenizer=word_tokenizer())
    with pytest.raises(DualHeadError, match=r" tokenizer=\.\.\."):
        model.switch_backbone(tiny_lm("llama", seed=1))
    model.switch_backbone(tiny_lm("llama", seed=1), tokenizer=word_tokenizer())
    with pytest.raises(DualHeadError, match=r"trained_tokenizer=\.\.\."):
        model.switch_backbone(tiny_lm("llama"), tokenizer=word_tokenizer(SWAPPED))
    for known in (SWAPPED, WORDS[:-1]):
        with pytest.raises(DualHeadError, match="not the one the guides were trained with"):
            model.switch_backbone(place / "swapped", trained_tokenizer=word_tokenizer(known), vocab_map=True)


# ---- adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GUIDES)
def test_an_adapter_starts_as_the_pooling_and_alone_is_trained(kind, place, tmp_path):
    model = switched(place, kind, "wide", adapter=True)
    torch.testing.assert_close(model(IDS).logits, switched(place, kind, "wide")(IDS).logits, **CLOSE)
    model.guides.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["transfers.g.adapter.weight"]
    step = GuidedLoss(model, method("iav"), guide="g").train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.02)
    batch = PairCollator(0)([{"prompt_ids": [1, 25], "chosen_ids": [4, 5, 2], "rejected_ids": [12, 13, 2]}])
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(step(**batch)["loss"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    assert changed == trained
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(IDS).logits, model(IDS).logits)


def test_an_adapter_that_stays_behind_is_said(place, caplog):
    model = switched(place, "linear", "wide", adapter=True)
    with caplog.at_level(logging.WARNING):
        model.switch_backbone(place / "padded")
    assert "adapter of 'g'" in caplog.text
