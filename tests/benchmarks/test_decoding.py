"""What the benchmark of decoding computes itself from the times of its sides."""

import decoding
import pytest
from measure import Timing


def test_time_after_the_first_token_leaves_out_the_prompt(monkeypatch):
    """A run that warms up, and two that count: of 9 and 8 seconds, the first tokens after 3 and 4."""
    ticks = iter([0, 0, 2, 5, 100, 100, 103, 109, 200, 200, 204, 208])
    monkeypatch.setattr(decoding, "perf_counter", lambda: next(ticks))

    def generate(streamer):
        for tokens in ("prompt", "first", "second"):
            streamer.put(tokens)
        streamer.end()

    watch = decoding.FirstToken(generate)
    for _ in range(3):
        watch.run()
    after = watch.after(Timing((9.0, 8.0), (1.0, 1.0)))
    assert after.seconds == (6.0, 4.0)


def test_more_is_done_for_every_token_before_it_is_handed_on():
    done = []

    class Streamer:
        put, end = done.append, lambda self: done.append("end")

    streamer = decoding.BeforeEach(lambda: done.append("more"), Streamer())
    streamer.put("token")
    streamer.end()
    assert done == ["more", "token", "end"]


def test_a_side_that_streams_nothing_is_an_error():
    with pytest.raises(ValueError, match="not enough values"):
        decoding.FirstToken(lambda streamer: None).run()
