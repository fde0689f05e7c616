"""Figures of a run, for the log: one line a case, in the summary of pytest, since its workers print nothing."""

from dataclasses import asdict

import pytest


@pytest.fixture
def report(record_property):
    """Note what was measured."""

    def write(name, *agreements):
        for i, agreement in enumerate(agreements):
            record_property(f"{name}, round {i + 1}", asdict(agreement))

    return write


def pytest_terminal_summary(terminalreporter):
    """Say every figure that was noted."""
    reports = [x for key in ("passed", "failed") for x in terminalreporter.stats.get(key, [])]
    for name, found in (pair for each in reports for pair in each.user_properties):
        terminalreporter.write_line(
            f"{name}: {found['equal']}/{found['requests']} equal, max |d logprob| {found['worst']:.1e}, "
            f"{found['cached']} tokens from pages"
        )
