"""Figures of a run, for the log: one line a case."""

from dataclasses import asdict

import pytest


@pytest.fixture
def report(record_property, capsys):
    """Print what was measured, whatever pytest captures."""

    def write(name, *agreements):
        for i, agreement in enumerate(agreements):
            record_property(f"{name}.{i}", asdict(agreement))
            with capsys.disabled():
                print(
                    f"\n  {name}: {agreement.equal}/{agreement.requests} equal, "
                    f"max |d logprob| {agreement.worst:.1e}, {agreement.cached} tokens from pages",
                    end="",
                )

    return write
