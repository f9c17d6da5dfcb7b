from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.arrivals import LEAST_SILENCE, LINGER_SHARE, Arrivals

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


# -- the rate ----------------------------------------------------------------------------------------------------------


def test_one_arrival_has_no_rate() -> None:
    arrivals = Arrivals()
    assert not arrivals.will_fill(1, 0.0, 1e9)
    arrivals.arrived(0.0, 1)
    assert not arrivals.will_fill(1, 0.0, 1e9)


def test_the_batch_fills_where_the_gaps_of_what_is_missing_fit_into_the_time() -> None:
    arrivals = Arrivals()
    for number in range(10):
        arrivals.arrived(0.5 * number, 1)
    assert arrivals.will_fill(4, 5.0, 7.0)
    assert not arrivals.will_fill(4, 5.0, 6.9)


def test_newer_gaps_weigh_more() -> None:
    arrivals = Arrivals()
    for now in (0.0, 10.0, 20.0, *(20.0 + 0.1 * number for number in range(1, 40))):
        arrivals.arrived(now, 1)
    assert arrivals.will_fill(10, 0.0, 1.1)


# -- those who come back -----------------------------------------------------------------------------------------------


def test_nobody_is_waited_for_before_it_is_known_whether_they_come_back() -> None:
    arrivals = Arrivals()
    arrivals.answered(10.0, 4, BATCH)
    arrivals.arrived(10.0, 1)
    assert arrivals.linger_until(1, 0, 1) == 0.0


def test_those_that_came_back_at_once_are_waited_for_until_a_silence() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert arrivals.linger_until(0, 0, 1) == pytest.approx(now + SILENCE)
    arrivals.arrived(now + 0.0001, 1)
    assert arrivals.linger_until(1, 0, 1) == pytest.approx(now + 0.0001 + SILENCE)


def test_when_all_are_there_nobody_is_waited_for() -> None:
    arrivals, now = cycles(3)
    cycle(arrivals, 4, now, 0.0001)
    assert arrivals.linger_until(4, 0, 1) == 0.0
    assert arrivals.linger_until(5, 0, 1) == 0.0


def test_those_that_are_on_workers_are_not_waited_for() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert arrivals.linger_until(1, 2, 1) > 0.0
    assert arrivals.linger_until(2, 2, 1) == 0.0


def test_free_workers_wait_for_their_shares() -> None:
    arrivals, now = cycles(3)
    arrivals.answered(now, 4, BATCH)
    assert arrivals.linger_until(1, 0, 2) > 0.0
    assert arrivals.linger_until(2, 0, 2) == 0.0


def test_those_whom_another_worker_answered_just_before_are_waited_for_as_well() -> None:
    arrivals, now = cycles(3, clients=8)
    arrivals.answered(now, 8, BATCH)
    arrivals.answered(now + 0.0001, 3, BATCH)
    assert arrivals.linger_until(7, 0, 1) > now
    assert arrivals.linger_until(8, 0, 1) == 0.0
    arrivals.answered(now + BATCH, 3, BATCH)
    assert arrivals.linger_until(3, 0, 1) == 0.0


def test_those_that_take_longer_than_the_silence_are_not_waited_for() -> None:
    arrivals, now = cycles(20, gap=1.01 * SILENCE)
    arrivals.answered(now, 4, BATCH)
    assert arrivals.linger_until(1, 0, 1) == 0.0


def test_those_that_come_back_no_more_are_soon_not_waited_for() -> None:
    arrivals, now = cycles(20)
    for _ in range(4):
        now = cycle(arrivals, 1, now, 1.0) + BATCH
    arrivals.answered(now, 4, BATCH)
    assert arrivals.linger_until(1, 0, 1) == 0.0


def test_a_quick_client_that_is_alone_does_not_wait_for_itself() -> None:
    arrivals, now = cycles(20, clients=1)
    cycle(arrivals, 1, now, SILENCE / 10)
    assert arrivals.linger_until(1, 0, 1) == 0.0


def test_batches_that_are_over_before_a_timer_fires_are_not_waited_for() -> None:
    arrivals, now = Arrivals(), 0.0
    for _ in range(20):
        arrivals.answered(now, 4, LEAST_SILENCE)
        for present in range(1, 5):
            arrivals.arrived(now, present)
        now += LEAST_SILENCE
    arrivals.answered(now, 4, LEAST_SILENCE)
    assert arrivals.linger_until(1, 0, 1) == 0.0


def test_slower_batches_make_the_silence_longer() -> None:
    arrivals, now = cycles(3)
    for _ in range(40):
        arrivals.answered(now, 4, 10 * BATCH)
    assert arrivals.linger_until(0, 0, 1) == pytest.approx(now + 10 * SILENCE, rel=0.01)


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
            arrivals.answered(now, present, seconds)
        assert arrivals.linger_until(0, 0, 1) <= now + LINGER_SHARE * longest + 1e-9
