"""What a person sees while something trains: terms, and an estimate that the first step does not spoil."""

from types import SimpleNamespace

import pytest
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dual_head.train import progress
from dual_head.train.progress import BriefPrinter, BriefProgress, brief, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    hand = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: hand.now)
    return hand


def states(*, steps: int, of: int):
    for step in range(1, steps + 1):
        yield SimpleNamespace(global_step=step, max_steps=of, is_world_process_zero=True, is_local_process_zero=True)


def test_lines_estimate_once_what_is_left_without_the_first_step(clock, capsys):
    lines = BriefPrinter()
    lines.on_train_begin(None, None, None)
    for state, now in zip(states(steps=6, of=100), (60, 62, 64, 66, 68, 70), strict=True):  # the first one compiles
        clock.now = now
        lines.on_step_end(None, state, None)
    assert capsys.readouterr().out == "step 4 of 100; about 3.2 min to go\n"  # six seconds after the first: 2 s a step


def test_lines_estimate_nothing_where_little_is_left(clock, capsys):
    lines = BriefPrinter()
    lines.on_train_begin(None, None, None)
    for state, now in zip(states(steps=3, of=3), (60, 64, 68), strict=True):
        clock.now = now
        lines.on_step_end(None, state, None)
    assert capsys.readouterr().out == ""


def test_a_bar_times_what_follows_the_first_step(monkeypatch):
    """After a resume from step 40 the first step moves it by 41, which took no time here."""
    bar = BriefProgress()
    resumed = SimpleNamespace(global_step=41, max_steps=100, is_world_process_zero=True)
    bar.on_train_begin(None, resumed, None)
    try:
        begun = bar.training_bar.start_t
        monkeypatch.setattr(bar.training_bar, "_time", lambda: begun + 30)
        bar.on_step_end(None, resumed, None)
        shown = bar.training_bar
        assert (shown.n, shown.initial, shown.start_t) == (41, 41, begun + 30)
        monkeypatch.setattr(shown, "_time", lambda: begun + 32)
        bar.on_step_end(None, SimpleNamespace(**{**vars(resumed), "global_step": 42}), None)
        assert shown.format_dict["elapsed"] == 2
        assert shown.n == 42
    finally:
        bar.on_train_end(None, resumed, None)


@pytest.mark.parametrize(
    ("terminal", "disabled", "kind"),
    [(True, False, BriefProgress), (False, False, BriefPrinter), (True, True, BriefPrinter)],
)
def test_a_bar_is_for_terminals(terminal, disabled, kind, monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: terminal))
    added = []
    theirs = PrinterCallback if disabled else ProgressCallback
    trainer = SimpleNamespace(
        args=SimpleNamespace(disable_tqdm=disabled),
        pop_callback=lambda callback: theirs() if callback is theirs else None,
        add_callback=added.append,
    )
    brief(trainer)
    assert added == [kind]


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (119, "119 s"), (150, "2.5 min"), (9000, "2.5 h")])
def test_a_duration_has_the_unit_that_suits_it(seconds, said):
    assert duration(seconds) == said
