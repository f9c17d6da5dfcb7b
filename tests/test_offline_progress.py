"""How far a run has come, how fast it goes and how long it will take."""

from __future__ import annotations

import pytest

from mosec_asgi.offline.progress import Progress, duration


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    progress = Progress(10_000, now=100.0)
    for second in range(100):
        # Slow at first: one in a second, then four.
        for _ in range(1 if second < 50 else 4):
            progress.advance(10, 101.0 + second)
    assert progress.rate(200.0) == pytest.approx(4.0, rel=0.05)
    assert progress.left(200.0) == pytest.approx((10_000 - 2500) / 40, rel=0.05)


def test_what_an_earlier_run_has_done_counts_as_done_and_not_as_quick() -> None:
    progress = Progress(1000, now=0.0)
    for _ in range(50):
        progress.skip(10)
    progress.start(10.0)
    progress.advance(10, 15.0)
    assert progress.share() == pytest.approx(0.51)
    assert progress.rate(20.0) == pytest.approx(0.1)
    assert progress.left(20.0) == pytest.approx(490.0)
    assert progress.text(20.0) == "51%, 51 lines, 0 lines/s, 8:10 left"


def test_nobody_knows_the_time_left_of_a_pipe_or_before_the_first_line() -> None:
    pipe = Progress(None, now=0.0)
    pipe.advance(10, 1.0, failed=True)
    assert (pipe.left(2.0), pipe.share()) == (None, None)
    assert pipe.text(2.0) == "1 line (1 failed), 0 lines/s"
    assert Progress(100, now=0.0).left(0.0) is None
    assert Progress(0, now=0.0).share() == 1.0


def test_times_are_said_as_people_read_them() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3600, 86_399)] == ["0:00", "1:00", "1:00:00", "23:59:59"]
