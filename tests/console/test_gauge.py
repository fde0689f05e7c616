"""Something long is watched by a bar on a terminal, and elsewhere by lines on stderr that say how long is left."""

import pytest

from dual_head.console import gauge
from dual_head.console.gauge import Gauge, duration, gauged


@pytest.fixture
def clock(monkeypatch):
    """Move time by hand, a second at a time or more."""

    class Clock:
        now = 100.0

        def pass_by(self, seconds: float) -> None:
            self.now += seconds

    hand = Clock()
    monkeypatch.setattr(gauge.time, "monotonic", lambda: hand.now)
    return hand


def lines(capsys) -> list[str]:
    shown = capsys.readouterr()
    assert shown.out == "", "nothing among what a command prints"
    return shown.err.splitlines()


def test_the_first_batch_tells_how_long_the_rest_takes(clock, capsys):
    with Gauge("prompts", 20) as watched:
        clock.pass_by(6)
        watched.advance(2)  # 3 s each, 18 left
        assert lines(capsys) == ["prompts: 2 of 20; about 54 s to go"]
        clock.pass_by(3)
        watched.advance()
        assert lines(capsys) == [], "not one for every step"
        clock.pass_by(31)
        watched.advance(7)  # 10 in 40 s
        assert lines(capsys) == ["prompts: 10 of 20; about 40 s to go"]
        clock.pass_by(200)
        watched.reach(20)
    assert lines(capsys) == ["prompts: 20 of 20; after 4.0 min"]


def test_what_takes_no_time_is_not_spoken_of(clock, capsys):
    for _ in gauged(range(4), "tokenising"):
        clock.pass_by(1)
    assert lines(capsys) == []


def test_what_was_there_before_does_not_count_as_speed(clock, capsys):
    with Gauge("rows", 1000, done=900) as watched:
        clock.pass_by(10)
        watched.advance(50)
    assert lines(capsys) == ["rows: 950 of 1,000; about 10 s to go"]


def test_where_nobody_knows_the_end_the_time_so_far_is_said(clock, capsys):
    with Gauge("rows") as watched:
        clock.pass_by(7)
        watched.advance(5)
        clock.pass_by(31)
        watched.advance(5)
        clock.pass_by(8)
        watched.reach(12, 24)  # told only now
        clock.pass_by(31)
        watched.reach(14)
    assert lines(capsys) == ["rows: 5; after 7 s", "rows: 10; after 38 s", "rows: 14 of 24; about 55 s to go"]


def test_a_line_of_ones_own_has_the_estimate_too(clock, capsys):
    with Gauge("hidden states", 10) as watched:
        clock.pass_by(1)
        watched.advance(5)
        watched.line("shard 1 of 2 is whole")
    assert lines(capsys) == ["shard 1 of 2 is whole; about 1 s to go"]


def test_a_terminal_has_a_bar_and_no_lines(clock, capsys, monkeypatch):
    monkeypatch.setattr(gauge.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Gauge("prompts", 20) as watched:
        clock.pass_by(6)
        watched.advance(2)
        watched.line("half")
    shown = capsys.readouterr().err
    assert "2/20" in shown
    assert "to go" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_label_is_shown_as_it_is(clock, capsys, monkeypatch, terminal):
    """A system may be named by anybody: a part of it is no colour, and moves no cursor."""
    monkeypatch.setattr(gauge.sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Gauge("[red]a[/] \x1b[2J", 4) as watched:
        clock.pass_by(6)
        watched.advance(2)
    assert r"[red]a[/] \x1b[2J" in capsys.readouterr().err


def test_a_quiet_process_shows_nothing(clock, capsys):
    for _ in gauged(iter("ab"), "rows", 2, quiet=True):
        clock.pass_by(60)
    assert lines(capsys) == []


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h")]
)
def test_durations_have_a_unit_of_their_size(seconds, said):
    assert duration(seconds) == said
