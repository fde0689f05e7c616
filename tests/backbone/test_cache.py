"""A guide's layers live in the cache of the whole model; whatever happens to one happens to the other."""

import copy
import gc
import weakref

import pytest
import torch
from models import ARCHITECTURES, LAYERS, VOCAB, tiny_lm
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from dual_head.backbone.cache import SPARE, CacheSlot, PrefixCache, PromptedCache, StackedCache, offloaded

LAYERS_IN_ALL = 5


def whole_cache() -> DynamicCache:
    """A cache of five layers, as a model of five makes it."""
    return DynamicCache(config=LlamaConfig(num_hidden_layers=LAYERS_IN_ALL, hidden_size=8, num_attention_heads=2))


def tokens(*values: float, rows: int = 1) -> Tensor:
    """Keys [rows, 1 head, T, width 1]; a second row is ten times the first."""
    return torch.stack([torch.tensor(values) * 10**row for row in range(rows)])[:, None, :, None]


def filled(cache: DynamicCache) -> list[int]:
    return [i for i, layer in enumerate(cache.layers) if layer.get_seq_length()]


def keys(cache, layer: int) -> list:
    return cache.layers[layer].keys[..., 0].squeeze(1).tolist()


# ---- a slot ------------------------------------------------------------------------------------------------


def test_a_slot_appends_to_its_own_layers_and_returns_all_of_them():
    whole = whole_cache()
    slot = CacheSlot(whole, 3)
    slot.update(tokens(1, 2), tokens(3, 4))
    k, v = slot.update(tokens(5), tokens(6))
    assert (k.flatten().tolist(), v.flatten().tolist()) == ([1, 2, 5], [3, 4, 6])
    slot.update(tokens(7), tokens(8), layer=1)
    assert filled(whole) == [3, 4]
    assert keys(whole, 4) == [[7]]


# ---- a view ------------------------------------------------------------------------------------------------


def test_what_is_stored_in_a_view_is_stored_in_the_whole_cache_at_its_offset():
    whole = whole_cache()
    view = CacheSlot(whole, 2).view(2, offset=1)
    assert len(view.layers) == 2
    k, _ = view.update(tokens(1, 2), tokens(3, 4), 0)
    assert k.flatten().tolist() == [1, 2]
    view.update(tokens(5), tokens(6), 1)
    assert filled(whole) == [3, 4]
    assert (keys(whole, 3), keys(whole, 4)) == ([[1, 2]], [[5]])


def test_a_view_counts_its_own_tokens():
    whole = whole_cache()
    view = CacheSlot(whole, 2).view(2)
    whole.update(tokens(1, 2, 3), tokens(1, 2, 3), 0)
    assert view.get_seq_length() == 0
    view.update(tokens(1), tokens(1), 0)
    assert (view.get_seq_length(), whole.get_seq_length()) == (1, 3)


@pytest.mark.parametrize("through", ["whole", "view"])
def test_reordering_acts_on_both(through):
    whole = whole_cache()
    view = CacheSlot(whole, 0).view(LAYERS_IN_ALL)
    for i in range(LAYERS_IN_ALL):
        view.update(tokens(1, 2, rows=2), tokens(3, 4, rows=2), i)
    {"whole": whole, "view": view}[through].reorder_cache(torch.tensor([1, 0]))
    assert keys(whole, 3) == keys(view, 3) == [[10, 20], [1, 2]]


@pytest.mark.parametrize("through", ["whole", "view"])
def test_cropping_acts_on_both(through):
    whole = whole_cache()
    view = CacheSlot(whole, 0).view(LAYERS_IN_ALL)
    for i in range(LAYERS_IN_ALL):
        view.update(tokens(1, 2, 3), tokens(4, 5, 6), i)
    {"whole": whole, "view": view}[through].crop(-1)
    assert keys(whole, 4) == keys(view, 4) == [[1, 2]]
    assert whole.get_seq_length() == view.get_seq_length() == 2


def test_a_cache_that_grows_as_it_is_filled_grows_for_a_view():
    whole = DynamicCache()
    assert len(whole.layers) == 0
    view = CacheSlot(whole, 2).view(2)
    assert (len(whole.layers), len(view.layers)) == (4, 2)
    view.update(tokens(1), tokens(2), 1)
    assert (filled(whole), keys(view, 1)) == ([3], [[1]])
    whole.update(tokens(5, 6), tokens(7, 8), 0)  # the layers before it fill up later
    assert (keys(whole, 0), keys(whole, 3)) == ([[5, 6]], [[1]])
    assert keys(CacheSlot(whole, 3).view(1), 0) == [[1]]  # and another view sees what is there


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@torch.no_grad()
def test_another_model_fills_a_view_as_it_would_a_cache_of_its_own(architecture):
    lm = tiny_lm(architecture).eval()
    ids = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    whole = DynamicCache()
    view = CacheSlot(whole, 3).view(LAYERS)
    steps = [lm(ids[:, at], past_key_values=view).logits for at in (slice(0, 5), slice(5, 6), slice(6, 12))]
    torch.testing.assert_close(torch.cat(steps, 1), lm(ids).logits, atol=2e-4, rtol=1e-4)
    assert filled(whole) == [3, 4]


# ---- stacked layers ----------------------------------------------------------------------------------------


def stacked(whole: DynamicCache) -> StackedCache:
    """Layers 0 and 3 of a cache, which hold two tokens each, as one layer of two models."""
    for layer, values in ((0, (1, 2)), (3, (3, 4))):
        whole.update(tokens(*values), tokens(*values), layer)
    return StackedCache([[whole.layers[0], whole.layers[3]]])


def test_stacked_layers_grow_together_and_stay_layers_of_their_cache():
    whole = whole_cache()
    cache = stacked(whole)
    for new in (5, 6):
        k, v = cache.update(torch.cat([tokens(new), tokens(10 * new)]), torch.cat([tokens(-new), tokens(-new)]), 0)
    assert k[..., 0].squeeze(1).tolist() == [[1, 2, 5, 6], [3, 4, 50, 60]]
    assert v[..., 0].squeeze(1).tolist() == [[1, 2, -5, -6], [3, 4, -5, -6]]
    assert (keys(whole, 0), keys(whole, 3)) == ([[1, 2, 5, 6]], [[3, 4, 50, 60]])
    assert cache.get_seq_length() == whole.get_seq_length() == 4


@pytest.mark.parametrize("grows", [True, False])
def test_the_keys_of_a_prompt_stand_in_front_of_every_row_and_in_no_layer(grows):
    whole = whole_cache()
    stacked(whole)
    front = torch.cat([tokens(-1, -2), tokens(-3, -4)])
    options = {"front": [lambda: (front, 10 * front)]}
    if grows:
        cache = StackedCache([[whole.layers[0], whole.layers[3]]], **options)
    else:
        cache = PromptedCache([CacheSlot(whole, 0).view(1), CacheSlot(whole, 3).view(1)], **options)
    with torch.set_grad_enabled(not grows):
        for new in range(5, 7 + SPARE):
            k, v = cache.update(torch.cat([tokens(new), tokens(10 * new)]), torch.cat([tokens(new)] * 2), 0)
    count = range(5, 7 + SPARE)
    assert k[..., 0].squeeze(1).tolist() == [[-1, -2, 1, 2, *count], [-3, -4, 3, 4, *(10 * n for n in count)]]
    assert v[..., 0].squeeze(1).tolist() == [[-10, -20, 1, 2, *count], [-30, -40, 3, 4, *count]]
    assert (keys(whole, 0), keys(whole, 3)) == ([[1, 2, *count]], [[3, 4, *(10 * n for n in count)]])


def test_a_token_is_written_behind_the_others_and_moves_them_only_where_room_ends():
    whole = whole_cache()
    cache = stacked(whole)
    places = set()
    for new in range(2 * SPARE):
        cache.update(torch.cat([tokens(new)] * 2), torch.cat([tokens(new)] * 2), 0)
        places.add(whole.layers[0].keys.data_ptr())
    assert len(places) == 2
    assert keys(whole, 0) == [[1, 2, *range(2 * SPARE)]]


CHANGES = {
    "cropped": (lambda cache: cache.crop(-1), [[1, 2]], [[3, 4]]),
    "reordered": (lambda cache: cache.reorder_cache(torch.tensor([0])), [[1, 2, 5]], [[3, 4, 5]]),
    "filled by another": (
        lambda cache: [cache.update(tokens(9), tokens(9), i) for i in (0, 3)],
        [[1, 2, 5, 9]],
        [[3, 4, 5, 9]],
    ),
}


@pytest.mark.parametrize(("change", "first", "second"), CHANGES.values(), ids=CHANGES)
def test_stacked_layers_go_on_from_whatever_became_of_them(change, first, second):
    whole = whole_cache()
    cache = stacked(whole)
    cache.update(tokens(5, rows=1).expand(2, -1, -1, -1), tokens(5).expand(2, -1, -1, -1), 0)
    held = whole.layers[0].keys
    change(whole)
    cache.update(tokens(7).expand(2, -1, -1, -1), tokens(7).expand(2, -1, -1, -1), 0)
    assert keys(whole, 0) == [[*first[0], 7]]
    assert keys(whole, 3) == [[*second[0], 7]]
    assert held.flatten().tolist() == [1, 2, 5]  # whoever kept it keeps it


def test_two_caches_that_hold_the_same_tensors_grow_apart():
    whole = whole_cache()
    cache = stacked(whole)
    both = [tokens(5).expand(2, -1, -1, -1)] * 2
    cache.update(*both, 0)
    other = [copy.copy(layer) for layer in (whole.layers[0], whole.layers[3])]
    cache.update(*both, 0)
    StackedCache([other]).update(*[tokens(6).expand(2, -1, -1, -1)] * 2, 0)
    assert keys(whole, 0) == [[1, 2, 5, 5]]
    assert other[0].keys.flatten().tolist() == [1, 2, 5, 6]


def test_a_deep_copy_of_a_cache_grows_apart_from_it():
    whole = whole_cache()
    cache = stacked(whole)
    cache.update(*[tokens(5).expand(2, -1, -1, -1)] * 2, 0)
    other = copy.deepcopy(whole)
    cache.update(*[tokens(6).expand(2, -1, -1, -1)] * 2, 0)
    StackedCache([[other.layers[0], other.layers[3]]]).update(*[tokens(7).expand(2, -1, -1, -1)] * 2, 0)
    assert (keys(whole, 0), keys(whole, 3)) == ([[1, 2, 5, 6]], [[3, 4, 5, 6]])
    assert (keys(other, 0), keys(other, 3)) == ([[1, 2, 5, 7]], [[3, 4, 5, 7]])


def test_a_layer_that_grew_with_another_goes_on_alone():
    whole = whole_cache()
    stacked(whole).update(*[tokens(5).expand(2, -1, -1, -1)] * 2, 0)
    StackedCache([[whole.layers[0]]]).update(tokens(6), tokens(6), 0)
    assert (keys(whole, 0), keys(whole, 3)) == ([[1, 2, 5, 6]], [[3, 4, 5]])


def test_what_layers_grow_in_goes_with_their_cache():
    whole = whole_cache()
    stacked(whole).update(*[tokens(5).expand(2, -1, -1, -1)] * 2, 0)
    growing = weakref.ref(whole.layers[0].growing)
    assert growing() is not None
    del whole
    gc.collect()
    assert growing() is None


def test_what_grew_in_inference_mode_goes_on_outside_of_it():
    whole = whole_cache()
    with torch.inference_mode():
        cache = stacked(whole)
        cache.update(*[tokens(5).expand(2, -1, -1, -1)] * 2, 0)
    cache.update(*[tokens(6).expand(2, -1, -1, -1)] * 2, 0)
    assert keys(whole, 3) == [[3, 4, 5, 6]]


def test_a_view_of_an_offloaded_cache_is_offloaded():
    whole = whole_cache()
    assert not offloaded(CacheSlot(whole, 3).view(2))
    whole.offloading = True
    assert offloaded(whole)
    assert offloaded(CacheSlot(whole, 3).view(2))


@torch.no_grad()
def test_without_a_gradient_a_view_grows_into_room():
    whole = whole_cache()
    view = CacheSlot(whole, 3).view(2)
    places = set()
    for new in range(5):
        k, v = view.update(tokens(new), tokens(-new), 1)
        assert (k.flatten().tolist(), v.flatten().tolist()) == ([*range(new + 1)], [-i for i in range(new + 1)])
        places.add(whole.layers[4].keys.data_ptr())
    assert len(places) == 2  # where the first was put, and where there is room
    assert keys(view, 1) == keys(whole, 4) == [[0, 1, 2, 3, 4]]


# ---- looking ahead -----------------------------------------------------------------------------------------


def test_looking_ahead_returns_what_is_stored_and_what_is_new_and_stores_nothing():
    whole = whole_cache()
    for i in range(LAYERS_IN_ALL):
        whole.update(tokens(1 + i, 2 + i), tokens(3, 4), i)
    ahead = PrefixCache(whole)
    for new in (8, 9):  # each starts from the same prefix
        k, v = ahead.update(tokens(new), tokens(7), 1)
        assert (k.flatten().tolist(), v.flatten().tolist()) == ([2, 3, new], [3, 4, 7])
    assert keys(whole, 1) == [[2, 3]]
    assert whole.get_seq_length() == 2


@pytest.mark.parametrize("graded", [False, True])
def test_the_first_tokens_of_a_look_ahead_stay_and_the_others_do_not(graded):
    whole = whole_cache()
    for i in range(LAYERS_IN_ALL):
        whole.update(tokens(1, 2), tokens(3, 4), i)
    stored = [1, 2]
    with torch.set_grad_enabled(graded):
        for new in (5, 6):
            ahead = PrefixCache(CacheSlot(whole, 3).view(2), new=1)
            assert ahead.width() == len(stored) + 1
            for layer in (0, 1):
                k, v = ahead.update(tokens(new, 8, 9), tokens(-new, 7, 7), layer)
            stored.append(new)
            assert k.flatten().tolist() == [*stored, 8, 9]
            assert v.flatten().tolist()[-3:] == [-new, 7, 7]
            assert (keys(whole, 4), keys(whole, 2)) == ([stored], [[1, 2]])


@torch.no_grad()
def test_continuations_of_one_prefix_in_one_forward_are_those_one_by_one():
    lm = tiny_lm("llama").eval()
    prefix, nexts = torch.tensor([[5, 6, 7]]), torch.tensor([[10, 11, 12]])
    cache = DynamicCache(config=lm.config)
    lm(prefix, past_key_values=cache)
    sees = torch.cat([torch.ones(3, 3), torch.eye(3)], 1).bool()[None, None]  # the prefix, and itself
    together = lm(
        nexts,
        attention_mask=torch.zeros(1, 1, 3, 6).masked_fill(~sees, torch.finfo(torch.float32).min),
        position_ids=torch.full((1, 3), 3),
        past_key_values=PrefixCache(cache),
    ).logits[0]
    for i, token in enumerate(nexts[0]):
        alone = lm(torch.cat([prefix, token.view(1, 1)], 1)).logits[0, -1]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 3
