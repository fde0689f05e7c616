"""What rows of hidden states share is computed once, and is what it would be of each row by itself."""

import pytest
import torch
from models import HIDDEN
from torch.multiprocessing.reductions import StorageWeakRef

from dual_head.backbone.features import Features, Rows

INDEX = torch.tensor([[0, 1], [0, 2], [3, 4], [3, 5]])


def rows_that_share_prompts(together: int, index: torch.Tensor = INDEX) -> Features:
    """Two rows of three tokens, and two sequences made of each: its first two tokens, its first and last."""
    torch.manual_seed(0)
    return Features(torch.randn(2, 3, HIDDEN)).select(Rows(index, together=together))


def test_what_rows_share_is_computed_once_and_is_the_same():
    seen: list[int] = []

    def twice(x):
        seen.append(x.flatten(0, -2).shape[0])
        return 2 * x

    shared, apart = (rows_that_share_prompts(together).of_each(twice) for together in (2, 1))
    assert torch.equal(shared, apart)
    assert seen == [6, 8]


def test_gradients_of_what_rows_share_add_up():
    results = []
    for together in (2, 1):
        linear = torch.nn.Linear(HIDDEN, 3, bias=False)
        torch.nn.init.eye_(linear.weight)
        rows_that_share_prompts(together).of_each(linear).square().sum().backward()
        results.append(linear.weight.grad)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_groups_of_rows_keep_together_those_that_share(size):
    features = rows_that_share_prompts(2)
    groups = [make() for make in features.groups(size)]
    assert [len(group.hidden) for group in groups] == ([4] if size >= 4 else [2, 2])
    torch.testing.assert_close(torch.cat([group.of_each(lambda x: x) for group in groups]), features.hidden)


def test_a_group_holds_the_tokens_of_its_own_rows_alone_wherever_they_were():
    features = rows_that_share_prompts(2, torch.tensor([[5, 3], [5, 1], [0, 2], [0, 4]]))
    seen: list[list[int]] = []

    def number(x):
        seen.append([int((features.shared.hidden.flatten(0, 1) == token).all(1).nonzero()) for token in x[0]])
        return x

    groups = [make() for make in features.groups(2)]
    torch.testing.assert_close(torch.cat([group.of_each(number) for group in groups]), features.hidden)
    assert seen == [[1, 3, 5], [0, 2, 4]]


def test_groups_not_yet_made_hold_no_rows_of_their_own():
    features = rows_that_share_prompts(2)
    rows, groups = StorageWeakRef(features.hidden.untyped_storage()), list(features.groups(2))
    del features
    assert rows.expired()
    assert [make().hidden.shape[0] for make in groups] == [2, 2]
