"""Every objective is an average over pairs: large batches, split batches and many devices agree."""

from dataclasses import replace

import pytest
import torch

from dual_head.losses import name_of, objective_class, objective_names
from dual_head.ops.scalars import SCALARS
from dual_head.ops.token_scores import Scored

NAMES = sorted({*SCALARS, "gate_logit"})
every_objective = pytest.mark.parametrize("name", objective_names())


def scored_rows(rows: list[list[int]], pairs: int, name: str) -> Scored:
    """Random scalars that depend on the row's number only: a pair has the same in any batch.

    For a loss of single replies, the first of a pair, with a label by its number, at one divergence.
    """
    values, row = [], []
    for at, (number, length) in enumerate(rows):
        draw = torch.Generator().manual_seed(number)
        values.append(torch.rand(len(NAMES), length, generator=draw))
        row += [at] * length
    scored = Scored(dict(zip(NAMES, torch.cat(values, 1), strict=True)), torch.tensor(row), pairs)
    if objective_class(name).learns_from != "feedback":
        return scored
    labels = torch.tensor([number % 2 == 0 for number, _ in rows[::2]])
    return replace(scored, desirable=labels, divergence=torch.tensor(0.25))


# [number, length] of chosen and rejected, pair by pair
PAIRS = [[[0, 3], [4, 2]], [[1, 1], [5, 6]], [[2, 7], [6, 1]], [[3, 2], [7, 4]]]


def rows(pairs: slice) -> list[list[int]]:
    return [row for pair in PAIRS[pairs] for row in pair]


@every_objective
def test_splitting_a_batch_and_averaging_gives_the_same_loss_and_metrics(name):
    objective = objective_class(name)()
    whole = objective(scored_rows(rows(slice(None)), 4, name))
    halves = [objective(scored_rows(rows(at), 2, name)) for at in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole.loss, torch.cat([half.loss for half in halves]))
    torch.testing.assert_close(whole.loss.mean(), sum(half.loss.mean() for half in halves) / 2)
    for metric, values in whole.metrics.items():
        torch.testing.assert_close(values, torch.cat([half.metrics[metric] for half in halves]))


@every_objective
def test_everything_is_per_pair(name):
    terms = objective_class(name)()(scored_rows(rows(slice(None)), 4, name))
    assert {x.shape for x in (terms.loss, *terms.metrics.values())} == {(4,)}


@every_objective
def test_an_objective_is_named_by_its_file(name):
    assert name_of(objective_class(name)()) == name


def test_there_are_objectives():
    assert {"next_token", "preference", "kto", "kl", "gate_entropy"} <= set(objective_names())
