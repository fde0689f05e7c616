"""Hooks on layers: what they read and change, and in which thread."""

from threading import Thread

import pytest
import torch
from torch import nn

from dual_head.backbone.layer_hooks import kept, shifted

X = torch.tensor([[[1.0, 2.0]]])


@pytest.fixture
def stack() -> nn.ModuleList:
    """Two layers, which double and triple."""
    return nn.ModuleList(_Times(factor) for factor in (2.0, 3.0))


def test_kept_are_the_first_input_and_what_a_layer_gives(stack):
    with kept(stack, [0, 1]) as states:
        run(stack)
    assert states[0].equal(X)
    assert states[1].equal(2 * X)


def test_a_shift_is_added_to_what_a_layer_gives(stack):
    with shifted(stack, {1: torch.ones(1, 1, 2)}):
        assert run(stack).equal(3 * (2 * X + 1))
    assert run(stack).equal(6 * X)


def test_a_thread_neither_reads_nor_changes_the_layers_of_another(stack):
    outputs = []
    with kept(stack, [0, 1, 2]) as states, shifted(stack, {1: torch.ones(1, 1, 2)}):
        other = Thread(target=lambda: outputs.append(run(stack)))
        other.start()
        other.join()
        assert not states
    assert outputs[0].equal(6 * X)


def run(stack: nn.ModuleList) -> torch.Tensor:
    """All layers, one after the other."""
    x = X
    for layer in stack:
        x = layer(x)
    return x


class _Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.factor * hidden_states
