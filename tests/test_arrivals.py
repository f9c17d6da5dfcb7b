from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.arrivals import FILL_SHARE, LEAST_SILENCE, LINGER_SHARE, Arrivals

BATCH = 0.008
SILENCE = LINGER_SHARE * BATCH


def cycle(arrivals: Arrivals, clients: int, now: float, gap: float) -> float:
    """Answer all clients at once, and let them come back one after the other; return the time of the last."""
    arrivals.answered(now, clients, BATCH)
    for present in range(1, clients + 1):
        now += gap
        arrivals.arrived(now, present)
    return now


def cycles(count: int, clients: int = 4, gap: float = SILENCE / 10) -> tuple[Arrivals, float]:
    arrivals, now = Arrivals(), 10.0
    for _ in range(count):
        now = cycle(arrivals, clients, now, gap) + BATCH
    return arrivals, now


def until(arrivals: Arrivals, waiting: int, on_workers: int = 0, free: int = 1, most: float = 1.0) -> float:
    return arrivals.linger_until(waiting, on_workers, free, most)


# -- the rate ----------------------------------------------------------------------------------------------------------


def steady(gap: float, count: int = 200) -> tuple[Arrivals, float]:
    """Let tasks arrive one by one at a stage whose batches take `BATCH`; return the time of the last."""
    arrivals = Arrivals()
    arrivals.answered(0.0, 1, BATCH)
    for number in range(count):
        arrivals.arrived(gap * number, 1)
    return arrivals, gap * (count - 1)


def test_one_arrival_has_no_rate() -> None:
    arrivals = Arrivals()
    assert not arrivals.will_fill(1, 0.0)
    arrivals.arrived(0.0, 1)
    assert not arrivals.will_fill(1, 0.0)
    arrivals.answered(BATCH, 1, BATCH)
    assert not arrivals.will_fill(1, BATCH)


def test_a_batch_is_waited_for_where_all_of_it_comes_in_a_part_of_a_batchs_time() -> None:
    arrivals, now = steady(0.9 * FILL_SHARE * BATCH / 4)
    assert arrivals.will_fill(4, now)
    arrivals, now = steady(1.2 * FILL_SHARE * BATCH / 4)
    assert not arrivals.will_fill(4, now)


def test_the_rate_is_forgotten_in_some_batches_time() -> None:
    arrivals, now = steady(BATCH / 100)
    assert arrivals.will_fill(4, now)
    assert not arrivals.will_fill(4, now + 20 * BATCH)
    for number in range(100):
        arrivals.arrived(now + 1000.0 + number * BATCH / 100, 1)
    assert arrivals.will_fill(4, now + 1000.0 + BATCH)


def test_the_rate_of_a_burst_is_not_taken_for_that_of_what_comes_next() -> None:
    arrivals, now = cycles(20)
    arrivals.answered(now, 4, BATCH)
    for present in range(1, 5):
        arrivals.arrived(now + present * 0.0001, present)
    # Four clients come within a tenth of a batch's time, and no fifth.
    assert not arrivals.will_fill(5, now + 0.0004)


# -- those who come back -----------------------------------------------------------------------------------------------


def test_nobody_is_waited_for_before_it_is_known_whether_they_come_back() -> None:
    arrivals = Arrivals()
    arrivals.answered(10.0, 4, BATCH)
    arrivals.arrived(10.0, 1)
    assert until(arrivals, 1) == 0.0


def test_those_that_came_back_at_once_are_waited_for() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert until(arrivals, 0) == pytest.approx(now + SILENCE)
    arrivals.arrived(now + 0.0001, 1)
    assert until(arrivals, 1) == pytest.approx(now + 0.0001 + SILENCE)
    arrivals.arrived(now + 0.0005, 2)
    assert until(arrivals, 2) == pytest.approx(now + 0.0005 + SILENCE)


def test_a_burst_that_comes_to_an_empty_stage_is_waited_for() -> None:
    arrivals, now = Arrivals(), 0.0
    for _ in range(10):
        now += 1.0
        for present in range(1, 9):
            arrivals.arrived(now + present * SILENCE / 20, present)
        arrivals.answered(now + BATCH, 8, BATCH)
    assert until(arrivals, 0) == pytest.approx(now + BATCH + SILENCE)
    arrivals.arrived(now + 1.0, 1)
    assert until(arrivals, 1) == pytest.approx(now + 1.0 + SILENCE)
    assert until(arrivals, 8) == 0.0


def test_an_idle_worker_waits_no_longer_than_a_batch_takes_whoever_comes_and_is_answered() -> None:
    arrivals, now = cycles(3, clients=40)
    arrivals.answered(now, 40, BATCH)
    for number in range(1, 200):
        # One comes on one route, one is answered by another worker; some are always missing.
        arrivals.arrived(now + number * SILENCE / 20, 39)
        arrivals.answered(now + number * SILENCE / 20, 39, BATCH, idle=True)
    assert until(arrivals, 1) == pytest.approx(now + BATCH)
    # This worker had something to do until now.
    arrivals.answered(now + 10 * SILENCE, 39, BATCH)
    assert until(arrivals, 1) == pytest.approx(now + 11 * SILENCE)


def test_arrivals_that_come_by_chance_are_not_taken_for_those_that_come_back() -> None:
    rng, lingered = random.Random(0), 0
    arrivals, now, waiting = Arrivals(), 0.0, 0
    for _ in range(2000):
        # A batch of all that came during the one before, 16 of them on average.
        end, size = now + BATCH, waiting
        waiting = 0
        while (now := now + rng.expovariate(16 / BATCH)) < end:
            waiting += 1
            arrivals.arrived(now, size + waiting)
        now = end
        arrivals.answered(now, size + waiting, BATCH)
        lingered += until(arrivals, waiting) > now
    assert lingered < 200


def test_nobody_is_waited_for_longer_than_is_allowed() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert until(arrivals, 0, most=0.0003) == pytest.approx(now + 0.0003)


def test_when_all_are_there_nobody_is_waited_for() -> None:
    arrivals, now = cycles(3)
    cycle(arrivals, 4, now, 0.0001)
    assert until(arrivals, 4) == 0.0
    assert until(arrivals, 5) == 0.0


def test_those_that_are_on_workers_are_not_waited_for() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert until(arrivals, 1, on_workers=2) > 0.0
    assert until(arrivals, 2, on_workers=2) == 0.0


def test_free_workers_wait_for_their_shares() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert until(arrivals, 1, free=2) > 0.0
    assert until(arrivals, 2, free=2) == 0.0


def test_those_whom_another_worker_answered_just_before_are_waited_for_as_well() -> None:
    arrivals, now = cycles(3, clients=8)
    arrivals.answered(now, 8, BATCH)
    arrivals.answered(now + 0.0001, 3, BATCH)
    assert until(arrivals, 7) > now
    assert until(arrivals, 8) == 0.0
    arrivals.answered(now + BATCH, 3, BATCH)
    assert until(arrivals, 3) == 0.0


def test_those_that_take_longer_than_the_silence_are_not_waited_for() -> None:
    arrivals, now = cycles(20, gap=1.01 * SILENCE)
    arrivals.answered(now, 4, BATCH)
    assert until(arrivals, 1) == 0.0


def test_those_that_come_back_no_more_are_soon_not_waited_for() -> None:
    arrivals, now = cycles(20)
    for _ in range(6):
        now = cycle(arrivals, 1, now, 1.0) + BATCH
    arrivals.answered(now, 4, BATCH)
    assert until(arrivals, 1) == 0.0


def test_a_quick_client_that_is_alone_does_not_wait_for_itself() -> None:
    arrivals, now = cycles(20, clients=1)
    cycle(arrivals, 1, now, SILENCE / 10)
    assert until(arrivals, 1) == 0.0


def test_batches_that_are_over_before_a_timer_fires_are_not_waited_for() -> None:
    arrivals, now = Arrivals(), 0.0
    for _ in range(20):
        arrivals.answered(now, 4, LEAST_SILENCE)
        for present in range(1, 5):
            arrivals.arrived(now, present)
        now += LEAST_SILENCE
    arrivals.answered(now, 4, LEAST_SILENCE)
    assert until(arrivals, 1) == 0.0


def test_slower_batches_make_the_silence_longer() -> None:
    arrivals, now = cycles(3)
    for _ in range(40):
        arrivals.answered(now, 4, 10 * BATCH)
    assert until(arrivals, 0) == pytest.approx(now + 10 * SILENCE, rel=0.01)


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0.0, 1.0), st.integers(1, 9), st.floats(0.0, 1.0)), min_size=1, max_size=60
    )
)
def test_lingering_ends_within_a_silence_of_what_happened_last(
    events: list[tuple[bool, float, int, float]],
) -> None:
    arrivals, now, longest = Arrivals(), 0.0, 0.0
    for is_arrival, pause, present, seconds in events:
        now += pause
        if is_arrival:
            arrivals.arrived(now, present)
        else:
            longest = max(longest, seconds)
            arrivals.answered(now, present, seconds, idle=present % 2 == 0)
        assert until(arrivals, 0) <= now + LINGER_SHARE * longest + 1e-9
