from __future__ import annotations

import itertools

import pytest

from mosec_asgi.pool.lifecycle import TRANSITIONS, Backoff, Event, LifecycleError, State, transition


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (State.STARTING, Event.READY, State.READY),
        (State.STARTING, Event.STOP, State.STOPPING),
        (State.STARTING, Event.LOST, State.LOST),
        (State.STARTING, Event.EXIT, State.DEAD),
        (State.READY, Event.DRAIN, State.DRAINING),
        (State.READY, Event.STOP, State.STOPPING),
        (State.READY, Event.LOST, State.LOST),
        (State.READY, Event.EXIT, State.DEAD),
        (State.DRAINING, Event.STOP, State.STOPPING),
        (State.DRAINING, Event.LOST, State.LOST),
        (State.DRAINING, Event.EXIT, State.DEAD),
        (State.STOPPING, Event.READY, State.STOPPING),
        (State.STOPPING, Event.STOP, State.STOPPING),
        (State.STOPPING, Event.LOST, State.LOST),
        (State.STOPPING, Event.EXIT, State.DEAD),
        (State.LOST, Event.STOP, State.LOST),
        (State.LOST, Event.EXIT, State.DEAD),
    ],
)
def test_a_step_of_the_table_leads_to_its_state(state: State, event: Event, after: State) -> None:
    assert transition(state, event) is after


@pytest.mark.parametrize(
    ("state", "event"), [pair for pair in itertools.product(State, Event) if pair not in TRANSITIONS]
)
def test_a_step_that_the_table_lacks_is_refused(state: State, event: Event) -> None:
    with pytest.raises(LifecycleError, match=f"(?i)is {state.name} cannot see the event {event.name}"):
        transition(state, event)


def test_the_table_has_seventeen_steps_and_none_after_death() -> None:
    assert len(TRANSITIONS) == 17
    assert State.DEAD not in {state for state, _ in TRANSITIONS}


def test_a_worker_may_exit_from_any_state_but_the_last() -> None:
    assert {state for state, event in TRANSITIONS if event is Event.EXIT} == set(State) - {State.DEAD}


# -- back-off ----------------------------------------------------------------------------------------------------------


def test_failed_starts_double_the_wait_up_to_the_most() -> None:
    backoff = Backoff(first=0.1, most=1.0)
    assert [backoff.delay(None, 0.0) for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_the_wait_stays_at_the_most_however_long_it_goes_on() -> None:
    backoff = Backoff(first=0.1, most=30.0)
    delays = [backoff.delay(None, 0.0) for _ in range(3000)]
    assert delays[-1] == 30.0
    assert delays == sorted(delays)


def test_the_first_early_death_of_a_worker_costs_no_wait_and_further_ones_do() -> None:
    backoff = Backoff(first=0.1, most=30.0, healthy=10.0)
    delays = [backoff.delay(100.0, 101.0) for _ in range(4)]
    assert delays[0] == 0.0
    assert delays[1] > 0.0
    assert delays[2:] == pytest.approx([2 * delays[1], 4 * delays[1]])


def test_a_worker_that_starts_well_and_answers_nothing_waits_up_to_a_most_of_its_own() -> None:
    backoff = Backoff(first=0.1, most=30.0, most_ready=0.5, healthy=10.0)
    assert [backoff.delay(100.0, 101.0) for _ in range(5)][1:] == pytest.approx([0.1, 0.2, 0.4, 0.5])


def test_a_worker_that_has_answered_is_replaced_at_once_however_often() -> None:
    backoff = Backoff(first=0.1, healthy=10.0)
    backoff.delay(None, 0.0)
    assert [backoff.delay(100.0, 100.1, answered=True) for _ in range(5)] == [0.0] * 5
    assert backoff.delay(None, 100.1) == pytest.approx(0.1)


def test_a_healthy_spell_makes_the_past_forgotten() -> None:
    backoff = Backoff(first=0.1, most=30.0, healthy=10.0)
    for _ in range(5):
        backoff.delay(None, 0.0)
    assert backoff.delay(100.0, 110.0) == 0.0
    assert backoff.delay(None, 110.0) == pytest.approx(0.1)


def test_a_spell_that_was_too_short_is_not_healthy() -> None:
    backoff = Backoff(first=0.1, most=30.0, healthy=10.0)
    for _ in range(3):
        backoff.delay(None, 0.0)
    assert backoff.delay(100.0, 109.9) == pytest.approx(0.8)


def test_a_failed_start_waits_even_the_first_time() -> None:
    assert Backoff(first=0.1).delay(None, 0.0) == pytest.approx(0.1)
