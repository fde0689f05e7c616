"""What equality notices: four faults of the plugin, each of which changes what requests get, and none of vLLM."""

import pytest
import torch
from dual_head_vllm import models
from dual_head_vllm.control import AlphaControl, of_tokens
from dual_head_vllm.gate import PagedGate
from engines import Golden, agreement, engine


def swapped(monkeypatch):
    """Each request gets the strengths of its neighbour in the batch."""
    update = AlphaControl.update_state

    def mutant(self, batch_update):
        update(self, batch_update)
        self.table.copy_(self.rows.roll(1, 0))

    monkeypatch.setattr(AlphaControl, "update_state", mutant)


def without_history(monkeypatch):
    """The gate sees the token itself and nothing before it."""

    def mutant(self, features, cache):
        values = features.hidden[0] @ self.projection[2].T
        return (values @ self.output + self.bias)[None]

    monkeypatch.setattr(PagedGate, "forward", mutant)


def off_by_one(monkeypatch):
    """The last token of a request, whose row is chosen from, counts as the next request's."""

    def mutant(table, starts, count, slots=None):
        return of_tokens(table, starts - 1, count, slots)

    monkeypatch.setattr(models, "of_tokens", mutant)


def stale(monkeypatch):
    """A row keeps the strengths of the first request that had it."""
    update, written = AlphaControl.update_state, set()

    def mutant(self, batch_update):
        before = self.rows.clone()
        update(self, batch_update)
        for row, *_ in batch_update.added if batch_update else ():
            if row in written:
                self.rows[row] = before[row]
            written.add(row)
        self.table.copy_(self.rows)

    monkeypatch.setattr(AlphaControl, "update_state", mutant)


@pytest.fixture(scope="module")
def llm():
    with engine(Golden.of("llama").guides) as running:
        yield running


@pytest.mark.parametrize("mutant", [swapped, without_history, off_by_one, stale])
def test_a_fault_is_noticed(mutant, llm, monkeypatch, report):
    golden = Golden.of("llama")
    with monkeypatch.context() as patch, torch.inference_mode():
        mutant(patch)
        broken = agreement(llm, golden)
    report(f"mutant {mutant.__name__}", broken)
    assert not broken.whole
    assert agreement(llm, golden).whole
