"""Sides take turns, ratios are of one round, and a figure says where it comes from."""

import measure
import pytest
import torch
from measure import Memory, Timing, compare, compare_tokens, machine, peak_memory


def test_every_round_begins_with_another_side():
    ran = []
    compare({name: lambda name=name: ran.append(name) for name in "abc"}, runs=3, warmup=1)
    assert "".join(ran) == "abcbcacababc"  # one word a round


def test_ratios_are_to_the_reference_of_the_same_round():
    now = [0.0]
    cost = {"slow": iter([9.0, 4.0, 4.0, 12.0]), "fast": iter([9.0, 1.0, 2.0, 4.0])}

    def side(name):
        def run():
            now[0] += next(cost[name])

        return run

    timings = compare({name: side(name) for name in cost}, runs=3, warmup=1, reference="slow", clock=lambda: now[0])
    assert timings["slow"].seconds == (4.0, 4.0, 12.0)
    assert timings["slow"].ratios == (1.0, 1.0, 1.0)
    assert timings["fast"].median == 2.0
    assert timings["fast"].ratio == 1 / 3
    assert timings["fast"].spread == (0.25, 0.5)


def test_the_first_side_is_the_reference_where_none_is_named():
    assert compare({"a": lambda: None, "b": lambda: None}, runs=1)["a"].ratios == (1.0,)


def test_tokens_are_timed_in_turns_and_the_first_apart_from_the_others():
    now, ran = [0.0], []
    cost = {"plain": [1.0, 2.0, 10.0, 20.0, 5.0], "guided": [1.0, 4.0, 11.0, 30.0, 5.0]}

    def side(name):
        def run(streamer):
            for i, seconds in enumerate(cost[name]):  # the prompt, three tokens, and what follows the last
                now[0] += seconds
                ran.append(name[0])
                if i < 4:
                    streamer.put(i)
            streamer.end()

        return run

    times, firsts = compare_tokens({name: side(name) for name in cost}, runs=2, clock=lambda: now[0])
    assert times["guided"].seconds == (11.0, 30.0) * 2
    assert times["guided"].ratios == (1.1, 1.5) * 2
    assert firsts == {"plain": 3.0, "guided": 5.0}
    assert "".join(ran[:10]) == "pggppggppg"  # one word a turn, each begins with the other side


def test_what_a_side_raises_is_raised():
    def broken(streamer):
        streamer.put(0)
        raise RuntimeError("no such token")

    def long(streamer):
        for i in range(9):
            streamer.put(i)

    with pytest.raises(RuntimeError, match="no such token"):
        compare_tokens({"long": long, "broken": broken}, runs=1)


def test_the_interval_of_a_median_is_by_order():
    """Of 100 ratios in order the median is between the 40th and the 61st, 9.8 places to either side of it."""
    timing = Timing((), tuple(float(i) for i in range(1, 101)))
    assert timing.interval == (40.0, 61.0)
    assert Timing((), (1.0, 2.0)).interval == (1.0, 2.0)


@pytest.mark.parametrize("wrong", [{"reference": "c"}, {"runs": 0}, {"warmup": -1}])
def test_a_comparison_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"reference|round"):
        compare({"a": lambda: None}, **wrong)
    with pytest.raises(ValueError, match="there are none"):
        compare({})


@pytest.mark.skipif(not (measure.PROCESS / "clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_sees_what_was_freed_before_the_call_returned():
    def run():
        torch.ones(64, 2**18)  # 64 MiB, gone at once

    for _ in range(2):  # the second as the first: the mark was reset
        assert 60 < peak_memory(run).over < 80
    assert peak_memory(lambda: None).over < 8


def test_memory_over_the_floor_is_the_difference():
    assert Memory(floor=100.0, peak=130.0).over == 30.0


def test_without_linux_there_is_no_peak_to_read(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "PROCESS", tmp_path)
    with pytest.raises(OSError, match="Measure it on Linux"):
        peak_memory(lambda: None)


def test_a_machine_says_what_a_reader_needs_to_repeat_a_figure():
    here = machine().as_dict()
    assert here["cores"] >= 1
    assert here["threads"] == torch.get_num_threads()
    assert here["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in here["versions"]["torch"]
    assert all(here[name] for name in ("cpu", "memory_gb", "date", "commit"))
