"""A timer that is moved often and fires seldom."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from fakes import FakeClock, FakeLoop

from mosec_asgi.lazy_timer import LazyTimer, delay_until


class Bench:
    """A timer, and when it has called."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.loop = FakeLoop(self.clock)
        self.calls: list[float] = []
        self.timer = LazyTimer(cast("Any", self.loop), self.clock, lambda: self.calls.append(self.clock.now))

    def set(self, seconds: float) -> None:
        """Set the timer to so many seconds from the beginning."""
        self.timer.set(1000.0 + seconds)

    @property
    def called(self) -> list[float]:
        """The seconds from the beginning at which it has called."""
        return pytest.approx([call - 1000.0 for call in self.calls])  # type: ignore[return-value]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_calls_once_at_its_time(bench: Bench) -> None:
    bench.set(2.0)
    assert bench.timer.is_set
    bench.loop.advance(1.999)
    assert bench.called == []
    bench.loop.advance(10.0)
    assert bench.called == [2.0]
    assert (bench.timer.is_set, bench.timer.when, bench.loop.timers) == (False, math.inf, [])


def test_one_that_was_never_set_calls_never(bench: Bench) -> None:
    bench.loop.advance(1e6)
    assert (bench.called, bench.timer.is_set, bench.timer.when) == ([], False, math.inf)


def test_moving_it_later_touches_no_timer_of_the_loop_and_it_calls_at_the_later_time(bench: Bench) -> None:
    bench.set(1.0)
    (before,) = bench.loop.timers
    for step in range(1, 1001):
        bench.set(1.0 + step / 1000)
        assert bench.loop.timers == [before]
    bench.loop.advance(1.5)
    assert bench.called == []
    assert len(bench.loop.timers) == 1, "it was set anew"
    bench.loop.advance(1.0)
    assert bench.called == [2.0]


def test_moving_it_earlier_makes_it_call_earlier(bench: Bench) -> None:
    bench.set(5.0)
    bench.set(1.0)
    assert len(bench.loop.timers) == 1
    bench.loop.advance(10.0)
    assert bench.called == [1.0]


def test_moved_later_and_then_earlier_again_it_calls_at_the_last_time_set(bench: Bench) -> None:
    bench.set(2.0)
    bench.set(9.0)
    bench.set(3.0)
    bench.loop.advance(20.0)
    assert bench.called == [3.0]


def test_one_that_is_cleared_calls_not_and_leaves_no_timer(bench: Bench) -> None:
    bench.set(1.0)
    bench.set(2.0)
    bench.timer.clear()
    assert (bench.loop.timers, bench.timer.is_set) == ([], False)
    bench.loop.advance(10.0)
    assert bench.called == []
    bench.timer.clear()
    bench.set(11.0)
    bench.loop.advance(5.0)
    assert bench.called == [11.0]


def test_it_may_be_set_again_by_what_it_calls(bench: Bench) -> None:
    def due() -> None:
        bench.calls.append(bench.clock.now)
        if len(bench.calls) < 3:
            bench.timer.set(bench.clock.now + 1.0)

    bench.timer = LazyTimer(cast("Any", bench.loop), bench.clock, due)
    bench.set(1.0)
    bench.loop.advance(10.0)
    assert bench.called == [1.0, 2.0, 3.0]


def test_a_timer_of_the_loop_that_fires_early_is_set_anew(bench: Bench) -> None:
    bench.set(1.0)
    (timer,) = bench.loop.timers
    bench.clock.advance(0.9995)
    timer.cancelled = True
    timer.callback()
    assert bench.called == []
    bench.loop.advance(0.001)
    assert len(bench.calls) == 1


def test_a_time_that_has_passed_is_now(bench: Bench) -> None:
    bench.set(-5.0)
    bench.loop.advance(0.0)
    assert bench.called == [0.0]


@pytest.mark.parametrize(
    ("when", "delay"), [(10.0, 0.0), (9.0, 0.0), (10.0001, 0.001), (10.001, 0.001), (10.0011, 0.002), (12.0, 2.0)]
)
def test_a_delay_is_whole_milliseconds_and_never_too_short(when: float, delay: float) -> None:
    assert delay_until(when, 10.0) == pytest.approx(delay, abs=0.00101)
    assert delay_until(when, 10.0) >= when - 10.0
    assert delay_until(when, 10.0) * 1000 == pytest.approx(round(delay_until(when, 10.0) * 1000))
