"""The guides of one backbone: their entries, their tensors by name, their layers of the cache, what they read."""

import copy

import pytest
import torch
from models import HIDDEN, LAYERS, VOCAB, tiny_lm
from transformers import DynamicCache

from dual_head import AlignedModel, DualHeadError
from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.multilayer import MultilayerConfig
from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.model.guide_set import GuideSet, entry_of

GATED = RewardHeadConfig(num_heads=2, head_dim=4)
PLAIN = {"a": LinearConfig(), "b": GATED, "c": LanguageModelConfig(), "d": HiddenConfig(gate="attention")}


def guide_set(**configs) -> GuideSet:
    backbone = Backbone(tiny_lm("llama"))
    return GuideSet(backbone, {name: entry_of(config, backbone.shape) for name, config in configs.items()})


def moved(config, **flags) -> GuideSet:
    """One guide that was made for a backbone half as wide and twice as deep."""
    backbone = Backbone(tiny_lm("llama"))
    shape = BackboneShape(HIDDEN // 2, VOCAB, 2 * LAYERS)
    return GuideSet(backbone, {"g": {**entry_of(config, shape), **flags}})


def test_it_is_a_dict_of_guides_and_of_nothing_else():
    guides = guide_set(**PLAIN)
    assert list(guides) == ["a", "b", "c", "d"]
    assert guides["a"].config == LinearConfig()
    assert dict(guides.named_children()).keys() == PLAIN.keys()
    assert all(p.requires_grad for p in guides.parameters())  # none of the backbone's


def test_guides_are_put_back_in_their_order_with_their_weights_and_what_fits_them():
    guides = moved(LinearConfig())
    guides.add("h", entry_of(HiddenConfig(), guides.backbone.shape))
    before, entries, restore = guides.stored(), guides.entries, guides.keep()
    guides.remove("g")
    guides.add("other", entry_of(LinearConfig(), guides.backbone.shape))
    restore()
    assert guides.entries == entries
    assert list(guides) == ["g", "h"]
    assert guides.transfer("g") is not None
    assert {name: x.data_ptr() for name, x in guides.stored().items()} == {
        name: x.data_ptr() for name, x in before.items()
    }


def test_layers_of_the_cache_follow_the_backbones_in_the_order_of_the_entries():
    guides = guide_set(**PLAIN)
    slots = guides.cache_slots(DynamicCache(), list(PLAIN))
    assert {name: slot.first_layer for name, slot in slots.items()} == {
        "b": LAYERS,
        "c": LAYERS + 1,
        "d": 2 * LAYERS + 1,
    }
    assert guides.cache_layers == 1 + LAYERS + 1
    only = guides.cache_slots(DynamicCache(), ["d"])  # the same layer, whichever others act
    assert only["d"].first_layer == slots["d"].first_layer


def test_a_guide_that_was_off_while_the_cache_was_filled_is_refused_by_name():
    guides, cache = guide_set(b=GATED), DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    with pytest.raises(DualHeadError, match="3 tokens of the backbone and 0 of the guide 'b'"):
        guides.cache_slots(cache, ["b"])


def test_layers_are_those_of_this_backbone_at_the_depth_they_had():
    config = MultilayerConfig(layers="custom", layer_indices=[1, 2])
    assert guide_set(g=config).layers_read(["g"]) == (1, 2)
    deeper = moved(MultilayerConfig(layers="custom", layer_indices=[2, 4]))
    assert deeper.layers_read(["g"]) == (1, 2)
    assert guide_set(g=config, a=LinearConfig()).layers_read(["a"]) == ()


def test_tensors_are_stored_under_the_guides_name_and_transfers_under_their_own():
    assert list(guide_set(a=LinearConfig(), low=LinearConfig(rank=2)).stored()) == [
        "a.head.up.weight",
        "low.head.down.weight",
        "low.head.up.weight",
    ]
    tensors = moved(LinearConfig(), adapter=True, vocab_map=True).stored()
    assert {name: tuple(x.shape) for name, x in tensors.items()} == {
        "g.head.up.weight": (VOCAB, HIDDEN // 2),
        "g.transfer.adapter.weight": (HIDDEN // 2, HIDDEN),
        "g.transfer.vocab_map": (VOCAB,),
    }


def test_a_transfer_is_a_submodule_of_the_model_once():
    lm = tiny_lm("llama")
    model = AlignedModel.from_backbone(lm, {"g": LinearConfig()})
    entry = {**model.guides.entries["g"], "adapter": True}
    model.guides.remove("g")
    model.guides.add("g", entry)
    assert model.transfers is model.guides.transfers
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["guides.g.head.up.weight", "transfers.g.adapter.weight"]
    other = copy.deepcopy(model)
    assert other.transfers is other.guides.transfers is not model.transfers
    assert other.guides.backbone is other.backbone is not model.backbone


def test_tensors_that_are_not_a_guides_leave_none_behind():
    guides = guide_set(a=LinearConfig())
    entry = entry_of(GATED, guides.backbone.shape)
    with pytest.raises(DualHeadError, match="somewhere"):
        guides.add("b", entry, {"b.unknown": torch.zeros(1)}, "somewhere")
    assert (list(guides), list(guides.entries), guides.cache_layers) == (["a"], ["a"], 0)


def test_a_guide_may_have_the_name_of_a_method():
    guides = guide_set(stored=LinearConfig(), encode=LinearConfig())
    assert list(guides.stored()) == ["stored.head.up.weight", "encode.head.up.weight"]
    guides.remove("stored")
    assert list(guides) == ["encode"]


def test_a_guide_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(DualHeadError, match=r"No guide is named 'hepl'.*'help'"):
        guide_set(help=LinearConfig()).remove("hepl")


def test_masks_are_made_for_guides_that_look_back_alone():
    guides, ids = guide_set(a=LinearConfig(), b=GATED), torch.ones(1, 3, dtype=torch.long)
    padding = torch.tensor([[0, 1, 1]])
    assert guides.masks(ids, padding, None, ["a"])[1] is None
    mask = guides.masks(ids, padding, None, ["b"]).guides
    assert mask.squeeze().int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert guides.masks(ids, padding, None, []) == (padding, None, None)
