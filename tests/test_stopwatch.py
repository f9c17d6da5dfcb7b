from __future__ import annotations

import contextlib

import pytest
from common import FakeClock

from mosec_asgi.inside.stopwatch import NEVER, Stopwatch, Watched
from mosec_asgi.inside.timer import NoTimer
from mosec_asgi.messages import ForwardTime


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watch(clock: FakeClock) -> Stopwatch:
    made = Stopwatch(clock)
    made.wanted.update([1, 2, 7])
    return made


def test_the_time_of_a_task_is_that_of_its_call_and_how_long_ago_it_began(watch: Stopwatch, clock: FakeClock) -> None:
    watch.begin([1, 2])
    clock.advance(2.0)
    watch.end([1, 2])
    clock.advance(0.5)
    assert watch.take([2, 1]) == [ForwardTime(2.5, 2.0, 1)] * 2


def test_several_calls_with_a_task_count_from_the_first_to_the_end_of_the_last(
    watch: Stopwatch, clock: FakeClock
) -> None:
    watch.begin([1, 2])
    clock.advance(1.0)
    watch.end([1, 2])
    clock.advance(1.0)
    watch.begin([2])
    clock.advance(1.0)
    watch.end([2])
    assert watch.take([1, 2]) == [ForwardTime(3.0, 1.0, 1), ForwardTime(3.0, 3.0, 2)]


def test_a_call_that_has_not_ended_goes_on_until_the_answer(watch: Stopwatch, clock: FakeClock) -> None:
    watch.begin([1])
    clock.advance(1.0)
    assert watch.take([1]) == [ForwardTime(1.0, 1.0, 1)]


def test_a_task_that_forward_never_had_and_one_that_was_answered_have_no_time(
    watch: Stopwatch, clock: FakeClock
) -> None:
    watch.begin([1])
    watch.take([1])
    watch.end([1])
    assert watch.take([1, 2]) == [NEVER, NEVER]


def test_of_tasks_that_are_not_traced_nothing_is_kept(watch: Stopwatch, clock: FakeClock) -> None:
    watch.begin([3, 4])
    clock.advance(1.0)
    watch.end([3, 4])
    assert watch.take([3, 4]) == ()
    watch.begin([1, 3])
    clock.advance(1.0)
    assert watch.take([3, 1]) == [NEVER, ForwardTime(1.0, 1.0, 1)]
    assert watch.wanted == {2, 7}


def test_around_a_call_it_measures_and_the_timer_bounds(watch: Stopwatch, clock: FakeClock) -> None:
    entered: list[str] = []

    class Notes(NoTimer):
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    class Port:
        stopwatch: Stopwatch | None = watch

    around = Watched(Notes(), Port(), lambda: (7,))
    with contextlib.suppress(ValueError), around:
        clock.advance(1.5)
        raise ValueError("a fault of forward's is measured, too")
    assert entered == ["in", "out"]
    assert watch.take([7]) == [ForwardTime(1.5, 1.5, 1)]
