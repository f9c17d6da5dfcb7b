from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.batching.rate import SPELL_SECONDS, Rate

SECONDS = st.floats(0.001, 30.0)


def work(rate: Rate, seconds_each: float, answers: int, *, now: float = 0.0) -> float:
    """Let tasks wait until a stage has answered so many, one after the other; return the time after it."""
    rate.wait(now, waiting=True)
    for _ in range(answers):
        now += seconds_each
        rate.answered(1, now)
    rate.wait(now, waiting=False)
    return now


def test_a_stage_that_has_answered_nothing_has_no_rate() -> None:
    rate = Rate()
    assert (rate.per_second, rate.seconds_for(1000)) == (0.0, 0.0)
    rate.wait(1.0, waiting=True)
    rate.wait(2.0, waiting=True)
    assert (rate.per_second, rate.seconds_for(1000)) == (0.0, 0.0)


def test_answers_without_measured_work_give_no_rate() -> None:
    rate = Rate()
    rate.wait(5.0, waiting=True)
    rate.answered(1, 5.0)
    assert (rate.per_second, rate.seconds_for(1000)) == (0.0, 0.0)


def test_the_first_answers_count_before_a_whole_spell_of_work() -> None:
    rate = Rate()
    rate.wait(10.0, waiting=True)
    rate.answered(2, 10.0 + SPELL_SECONDS / 5)
    assert rate.per_second == pytest.approx(10 / SPELL_SECONDS)


def test_tasks_take_their_number_over_the_rate() -> None:
    rate = Rate()
    work(rate, 0.25, 8)
    assert rate.per_second == pytest.approx(4.0)
    assert rate.seconds_for(10) == pytest.approx(2.5)
    assert rate.seconds_for(0) == 0.0


def test_answers_while_nothing_waits_tell_nothing() -> None:
    rate = Rate()
    now = work(rate, 0.1, 20)
    for place in range(1, 50):
        # A trickle: each is answered before the next comes.
        rate.wait(now + place - 0.5, waiting=False)
        rate.answered(1, now + place)
    assert rate.per_second == pytest.approx(10.0)


def test_a_quiet_hour_does_not_make_a_stage_look_slow() -> None:
    rate = Rate()
    now = work(rate, 0.1, 20)
    now = work(rate, 0.1, 1, now=now + 3600.0)
    work(rate, 0.1, 20, now=now + 3600.0)
    assert rate.per_second == pytest.approx(10.0)


def test_an_hour_after_those_that_waited_have_left_does_not_count_either() -> None:
    rate = Rate()
    now = work(rate, 0.125, 20)
    rate.wait(now, waiting=True)
    # They leave unanswered.
    rate.wait(now + 0.25, waiting=False)
    work(rate, 0.125, 2, now=now + 3600.0)
    # Of the last half second, half went by without an answer.
    assert rate.per_second == (8.0 + 4.0) / 2


def test_time_in_which_tasks_wait_counts_however_often_that_is_said() -> None:
    rate = Rate()
    for now in (0.0, 0.5, 0.9):
        rate.wait(now, waiting=True)
    rate.answered(1, 1.0)
    assert rate.per_second == pytest.approx(1.0)


def test_a_frame_of_many_answers_counts_them_all() -> None:
    rate = Rate()
    rate.wait(0.0, waiting=True)
    rate.answered(64, 1.0)
    assert rate.per_second == pytest.approx(64.0)


def test_a_spell_that_is_over_does_not_count_again() -> None:
    rate = Rate()
    work(rate, SPELL_SECONDS, 1)
    first = rate.per_second
    rate.wait(100.0, waiting=True)
    rate.answered(0, 100.0 + SPELL_SECONDS)
    assert rate.per_second == pytest.approx(first / 2), "half of the rate is what was measured last: nothing"


@given(seconds_each=SECONDS, answers=st.integers(1, 60), gaps=st.lists(st.floats(0.0, 1e5), max_size=10))
@settings(max_examples=100, deadline=None)
def test_at_an_even_speed_the_rate_is_that_speed_whatever_the_gaps(
    seconds_each: float, answers: int, gaps: list[float]
) -> None:
    rate = Rate()
    now = work(rate, seconds_each, answers)
    for gap in gaps:
        now = work(rate, seconds_each, answers, now=now + gap)
    assert rate.per_second == pytest.approx(1 / seconds_each, rel=1e-3)


@given(speeds=st.lists(SECONDS, min_size=1, max_size=10), answers=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_the_rate_is_never_beyond_what_was_measured(speeds: list[float], answers: int) -> None:
    rate = Rate()
    now = 0.0
    for seconds_each in speeds:
        now = work(rate, seconds_each, answers, now=now)
    assert 1 / max(speeds) * 0.999 <= rate.per_second <= 1 / min(speeds) * 1.001


@given(before=SECONDS, after=SECONDS)
@settings(max_examples=100, deadline=None)
def test_the_rate_follows_a_change_of_speed(before: float, after: float) -> None:
    rate = Rate()
    now = work(rate, before, 40)
    spells = 0
    while spells < 20:
        now = work(rate, after, int(SPELL_SECONDS / after) + 1, now=now)
        spells += 1
    assert rate.per_second == pytest.approx(1 / after, rel=0.01)
