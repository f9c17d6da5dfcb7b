"""The door: who is admitted, and which tasks are still worth a worker's time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.admission import STANDING_SECONDS, Admission, Reason
from mosec_asgi.batching.leeway import SHARE, SHARE_AT_FIRST
from mosec_asgi.batching.stage_admission import PROBE_SECONDS, StageAdmission


@dataclass
class Load:
    """What a stage has, set by hand."""

    queued: int = 0
    in_flight: int = 0
    units: int = 0
    workers: int = 1
    waiting_since: float = -1e9
    began: Sequence[float] = ()

    @property
    def queued_work(self) -> float:
        return self.queued

    def begun_before(self, time: float) -> int:
        return sum(began < time for began in self.began)


class Door:
    """An admission over stages whose loads are set by hand; the time is 100."""

    def __init__(
        self,
        *stages: dict[str, Any],
        routes: list[tuple[int, ...]] | None = None,
        timeout: float = 1.0,
        active: bool = True,
    ) -> None:
        self.now = 100.0
        self.loads = [Load(workers=stage.pop("workers", 1)) for stage in stages]
        self.stages = [StageAdmission(load, timeout, **stage) for load, stage in zip(self.loads, stages, strict=True)]
        self.timeout = timeout
        self.routes = routes or [tuple(range(len(stages)))]
        self.door = Admission(self.stages, self.routes, timeout=timeout, active=active)

    def learn(self, seconds: float, *, stage: int = 0, items: int = 1, times: int = 20) -> None:
        """Let a stage be measured; the latest answer is of this moment."""
        for _ in range(times):
            self.stages[stage].answered(items, self.now - seconds, self.now, units=1, wanted=True)

    def work(self, queued: int, units: int = 1, *, stage: int = 0, items: int = 1) -> None:
        """Let a stage have work, begun at this moment."""
        load = self.loads[stage]
        load.queued, load.units, load.in_flight = queued, units, units * items
        self.stages[stage].sent(units, self.now)

    def began(self, times: Sequence[float], *, stage: int = 0) -> None:
        """Let a stage's running tasks have been begun at these times."""
        self.loads[stage].began = times
        self.stages[stage]._soon_due = -math.inf

    def ask(self, timeout: float | None = None, route: int = 0) -> Reason | None:
        self.fresh()
        refusal = self.door.judge(self.routes[route], timeout or self.timeout, self.now)
        return None if refusal is None else refusal.reason

    def is_late(self, left: float, *, limit: float = 1.0, together: int = 1, position: int = 0, route: int = 0) -> bool:
        self.fresh()
        return self.door.is_late(self.routes[route], position, together, self.now + left, limit, self.now)

    def offer(self, per_second: float, *, stage: int = 0, spans: int = 5) -> None:
        """Let calls come to a stage, all of which are refused, for two timeouts and more."""
        offered = self.stages[stage].offered
        for _ in range(spans):
            offered.roll(self.now)
            offered.count += int(per_second * offered.span)
            self.now += offered.span
        offered.roll(self.now)

    def fresh(self) -> None:
        for stage in self.stages:
            stage.due = stage._read_due = -math.inf


def test_a_stage_of_which_nothing_is_known_objects_to_nothing() -> None:
    door = Door({})
    door.work(1000)
    assert door.ask() is None
    door.learn(0.05, times=2)
    assert door.ask() is None
    assert not door.is_late(0.001)


@pytest.mark.parametrize(("queued", "refused"), [(18, None), (19, Reason.DEADLINE)])
def test_the_last_call_that_is_finished_in_time_is_admitted(queued: int, refused: Reason | None) -> None:
    door = Door({})
    door.learn(0.0499)
    door.work(queued)
    assert door.ask() is refused


def test_what_a_worker_has_done_of_its_unit_counts() -> None:
    door = Door({})
    door.learn(0.3)
    door.work(2)
    assert door.ask() is Reason.DEADLINE
    door.now += 0.25
    assert door.ask() is None


def test_a_worker_that_says_nothing_for_long_is_expected_to_take_as_long_again() -> None:
    door = Door({})
    door.learn(0.05)
    door.work(5)
    assert door.ask() is None
    door.now += 0.8
    assert door.ask() is Reason.DEADLINE


@pytest.mark.parametrize(
    ("stage", "units", "queued", "wait"),
    [
        ({}, 0, 0, 0.0),
        ({}, 1, 3, 0.4),
        ({"workers": 4}, 3, 0, 0.0),
        ({"workers": 4}, 4, 3, 0.1),
        ({"concurrency": 50}, 50, 49, 0.1),
        ({"workers": 2, "concurrency": 5}, 10, 0, 0.01),
        ({"batch_size": 8}, 1, 7, 0.1),
        ({"batch_size": 8}, 2, 16, 0.4),
    ],
)
def test_the_wait_is_that_for_a_slot(stage: dict[str, Any], units: int, queued: int, wait: float) -> None:
    door = Door(stage)
    door.learn(0.1, items=stage.get("batch_size", 1))
    door.fresh()
    door.ask()
    door.work(queued, units)
    assert door.stages[0].wait(queued, door.now) == pytest.approx(wait)


def test_each_call_is_judged_by_its_own_time() -> None:
    door = Door({})
    door.learn(0.05)
    door.work(10)
    assert door.ask(0.5) is Reason.DEADLINE
    assert door.ask(0.7) is None
    assert door.ask(10 * 365 * 86400.0) is None
    assert door.ask(0.001) is Reason.OWN_TIME
    assert door.ask(0.055) is Reason.OWN_TIME, "no queue is so short"


def test_where_a_stage_takes_too_long_for_anybody_a_call_is_tried_now_and_then() -> None:
    door = Door({})
    door.learn(2.0)
    assert door.ask() is Reason.OWN_TIME
    door.now += PROBE_SECONDS
    assert door.ask() is None
    assert not door.is_late(1.0)
    door.work(0)
    assert door.ask() is Reason.OWN_TIME, "one at a time"


def test_where_the_stages_together_take_too_long_they_are_tried_together() -> None:
    door = Door({}, {})
    door.learn(0.6)
    door.learn(0.6, stage=1)
    assert door.ask() is Reason.OWN_TIME
    door.now += PROBE_SECONDS
    assert door.ask() is None
    door.door.admitted((0, 1))
    assert not door.is_late(1.0)
    door.work(0)
    assert door.ask() is Reason.DEADLINE, "one at a time"


def test_a_stage_that_has_become_fast_is_believed_after_four_answers() -> None:
    door = Door({})
    door.learn(2.0)
    assert door.ask() is Reason.OWN_TIME
    door.learn(0.05, times=4)
    assert door.ask() is None


def test_a_few_slow_ones_do_not_shut_the_door() -> None:
    door = Door({})
    door.learn(0.05, times=40)
    door.learn(3.0, times=1)
    door.learn(0.05, times=5)
    door.learn(3.0, times=1)
    door.learn(0.05, times=5)
    door.stages[0].caution = 1.0
    assert door.ask() is None


def test_a_pause_that_holds_up_all_slots_does_not_shut_the_door() -> None:
    door = Door({"concurrency": 5})
    door.learn(0.1, times=40)
    paused(door, 2.0)
    assert door.ask() is None


def test_a_stage_that_is_slow_in_the_next_round_of_its_slots_too_has_become_slow() -> None:
    door = Door({"concurrency": 5})
    door.learn(0.1, times=40)
    paused(door, 2.0)
    paused(door, 2.0)
    assert door.ask() is Reason.OWN_TIME


def test_of_a_later_pause_one_unit_is_noted_too() -> None:
    door = Door({"concurrency": 5})
    door.learn(0.1, times=40)
    for _ in range(2):
        paused(door, 2.0)
        door.now += 5.0
        door.learn(0.1, times=10)
    assert door.ask() is None


def test_a_moment_before_a_pause_is_not_the_pause() -> None:
    door = Door({"concurrency": 5})
    door.learn(0.1, times=40)
    paused(door, 0.15)
    paused(door, 2.0)
    assert door.ask() is None


def paused(door: Door, seconds: float) -> None:
    """Let five units that ran together be answered late, one after the other."""
    door.ask()
    began, door.now = door.now, door.now + seconds
    for left in reversed(range(5)):
        door.began([began] * left)
        door.stages[0].answered(1, began, door.now, units=1, wanted=True)
    door.stages[0].refresh(door.now)


def test_answers_of_a_concurrent_worker_that_come_together_were_not_made_one_after_the_other() -> None:
    door = Door({"concurrency": 8}, {})
    door.learn(0.4, items=8)
    door.learn(0.4, items=8, stage=1)
    door.ask()
    assert [stage.times.mean for stage in door.stages] == pytest.approx([0.4, 0.05])


def test_answers_that_nobody_waited_for_and_that_came_quickly_say_nothing() -> None:
    door = Door({})
    door.learn(0.05)
    door.ask()
    for _ in range(10):
        door.stages[0].answered(1, door.now - 0.0001, door.now, units=1, wanted=False)
    door.ask()
    assert door.stages[0].times.mean == pytest.approx(0.05)
    door.now += 3.0
    for _ in range(10):
        door.stages[0].answered(1, door.now - 2.0, door.now, units=1, wanted=False)
    door.ask()
    assert door.stages[0].times.mean == pytest.approx(2.0), "those that took too long do"


def test_of_a_stream_the_first_event_counts() -> None:
    door = Door({"streams": True})
    door.learn(5.0)
    for _ in range(5):
        door.stages[0].first_event(door.now - 0.1, door.now)
    assert door.ask() is None
    assert not door.is_late(0.2)
    assert door.is_late(0.05)
    door.work(0)
    assert door.ask() is Reason.DEADLINE, "the only slot is taken for long"


def test_the_stages_of_a_route_add_up() -> None:
    door = Door({}, {})
    door.learn(0.4)
    door.learn(0.5, stage=1)
    assert door.ask(0.95) is None
    assert door.ask(0.8) is Reason.OWN_TIME
    door.work(0, stage=1)
    assert door.ask(0.95) is Reason.DEADLINE, "the second stage is taken when it comes there"


def test_those_on_their_way_to_a_later_stage_are_ahead_there() -> None:
    door = Door({}, {})
    door.learn(0.001)
    door.learn(0.05, stage=1)
    for _ in range(30):
        door.door.admitted((0, 1))
    assert door.ask() is Reason.DEADLINE
    for _ in range(10):
        door.door.arrived(1)
    for _ in range(20):
        door.door.left((0, 1), 0)
    assert door.ask() is None
    assert door.stages[1].coming == 0


def test_a_task_that_cannot_be_finished_any_more_is_late() -> None:
    door = Door({})
    door.learn(0.05)
    assert door.is_late(0.049)
    assert not door.is_late(0.051)


def test_the_later_stages_count_where_a_task_is_begun() -> None:
    door = Door({}, {})
    door.learn(0.05)
    door.learn(0.1, stage=1)
    door.ask()
    assert door.is_late(0.14)
    assert not door.is_late(0.16)
    assert not door.is_late(0.11, position=1)


def test_a_batch_that_is_sent_ahead_begins_when_the_one_before_ends() -> None:
    door = Door({"batch_size": 8})
    door.learn(0.1, items=8)
    door.work(8, items=8)
    assert door.is_late(0.19, together=8)
    assert not door.is_late(0.21, together=8)


def test_far_from_its_deadline_a_task_is_not_looked_at() -> None:
    door = Door({}, {})
    door.learn(0.05)
    door.learn(0.1, stage=1)
    door.ask()
    door.ask()
    assert 0.15 < door.stages[0].margin < 1.0
    assert 0.1 < door.stages[1].margin < door.stages[0].margin


def test_an_overloaded_stage_keeps_its_queue_short() -> None:
    door = Door({})
    door.learn(0.05)
    door.offer(60.0)
    door.learn(0.05, times=1)
    door.work(2)
    assert door.ask() is None
    door.work(6)
    assert door.ask() is Reason.OVERLOAD


def test_a_queue_whose_first_task_has_just_come_is_not_too_long_whatever_the_speed_seems_to_be() -> None:
    door = Door({})
    door.learn(0.001)
    door.offer(3000.0)
    door.learn(0.001, times=1)
    door.work(15)
    load = door.stages[0].load
    assert isinstance(load, Load)
    load.waiting_since = door.now - 0.001
    assert door.ask() is None
    load.waiting_since = door.now - 2 * STANDING_SECONDS
    assert door.ask() is Reason.OVERLOAD


@pytest.mark.parametrize("load", [0.9, 1.0, 1.3])
def test_near_its_capacity_it_does_not(load: float) -> None:
    door = Door({})
    door.learn(0.05)
    door.offer(20.0 * load)
    door.learn(0.05, times=1)
    door.work(14)
    assert door.ask() is None


def test_a_burst_passes() -> None:
    door = Door({})
    door.learn(0.05)
    offered = door.stages[0].offered
    for count in (18, 0, 18, 0, 18, 0):
        offered.roll(door.now)
        offered.count += count * 2
        door.now += offered.span
    door.learn(0.05, times=1)
    door.work(16)
    assert door.ask() is None


def test_a_short_queue_still_fills_batches_and_slots() -> None:
    door = Door({"batch_size": 8, "workers": 4})
    door.learn(0.06, items=8)
    door.offer(5000.0)
    door.learn(0.06, items=8, times=1)
    door.began([door.now - 0.03] * 32)
    door.work(20, 4)
    assert door.ask() is None, "all four are about to take a batch"
    door.work(32, 4)
    assert door.ask() is Reason.OVERLOAD
    door.began([door.now] * 32)
    door.work(8, 4)
    assert door.ask() is None
    door.work(12, 4)
    assert door.ask() is Reason.OVERLOAD, "none is taken for long, and others come"


def test_of_slots_that_begin_together_the_queue_is_kept_for_those_that_come_late() -> None:
    door = Door({"concurrency": 8})
    door.learn(0.4)
    door.offer(60.0)
    door.learn(0.4, times=1)
    door.began([door.now - 0.3] * 8)
    door.work(2, 8)
    assert door.ask() is None
    door.work(4, 8)
    assert door.ask() is Reason.OVERLOAD
    door.began([door.now - 0.36] * 8)
    assert door.ask() is None
    door.work(8, 8)
    assert door.ask(3.0) is Reason.OVERLOAD


def test_what_was_sent_ahead_to_a_worker_belongs_to_its_queue() -> None:
    door = Door({"concurrency": 8})
    door.learn(0.4)
    door.offer(60.0)
    door.learn(0.4, times=1)
    door.began([door.now - 0.05 * slot for slot in range(8)])
    door.work(2, 8)
    assert door.ask() is None
    door.work(2, 10)
    assert door.ask() is Reason.OVERLOAD


def test_the_stage_before_limits_what_is_brought_to_the_next() -> None:
    door = Door({}, {})
    door.learn(0.05)
    door.learn(0.04, stage=1)
    door.offer(200.0, stage=1)
    door.learn(0.05, times=1)
    door.learn(0.04, stage=1, times=1)
    door.work(0, 0)
    door.work(6, stage=1)
    assert door.ask() is None, "20 a second come there, and it does 25"


def test_a_stage_with_a_latency_target_refuses_what_would_be_there_for_longer() -> None:
    door = Door({"latency_target": 0.2})
    door.learn(0.05)
    door.work(1)
    assert door.ask() is None
    door.work(3)
    assert door.ask() is Reason.LATENCY_TARGET


def test_a_target_that_is_below_the_stages_own_time_still_lets_in_what_need_not_wait() -> None:
    door = Door({"latency_target": 0.01})
    door.learn(0.05)
    door.work(0, 0)
    assert door.ask() is None
    door.work(0)
    assert door.ask() is Reason.LATENCY_TARGET


def test_an_admission_that_is_turned_off_only_measures() -> None:
    door = Door({}, active=False)
    door.learn(0.05)
    door.work(100)
    assert door.ask() is None
    assert door.door.retry_after((0,), door.now) == pytest.approx(5.0)
    assert door.stages[0].margin == -math.inf


def test_a_worker_that_joins_counts_at_once_that_is_within_some_milliseconds() -> None:
    door = Door({})
    door.learn(0.05)
    door.work(19)
    assert door.ask() is Reason.DEADLINE
    door.loads[0].workers = 2
    assert door.ask() is None


def test_without_a_worker_the_work_of_one_is_admitted() -> None:
    door = Door({"workers": 4})
    door.learn(0.1)
    door.loads[0].workers = 0
    door.work(5, 0)
    assert door.ask() is None
    door.work(20, 0)
    assert door.ask() is Reason.DEADLINE


def test_the_retry_after_is_the_time_that_what_waits_takes_at_the_slowest_stage() -> None:
    door = Door({}, {"workers": 2})
    assert door.door.retry_after((0, 1), door.now) == 0.0
    door.learn(0.05)
    door.learn(0.5, stage=1)
    door.work(20)
    door.work(8, stage=1)
    door.fresh()
    assert door.door.retry_after((0, 1), door.now) == pytest.approx(2.0)
    assert door.door.retry_after((0,), door.now) == pytest.approx(1.0)


def test_who_looks_often_at_the_expected_wait_does_not_keep_the_door_from_learning() -> None:
    door = Door({})
    door.learn(0.05)
    door.work(100)
    assert door.stages[0].expected_wait(door.now) == pytest.approx(5.05)
    assert door.door.judge((0,), 1.0, door.now) is not None
    assert door.stages[0].margin > 0.05


def test_where_few_calls_are_there_nothing_else_is_asked() -> None:
    door = Door({}, {})
    assert door.door.is_calm(0, 1000, door.timeout, door.now), "nothing is known of it"
    door.learn(0.02)
    door.learn(0.02, stage=1)
    door.now += 1.0
    assert door.door.is_calm(0, 5, door.timeout, door.now)
    assert not door.door.is_calm(0, 25, door.timeout, door.now)
    assert not door.door.is_calm(0, 5, door.timeout / 2, door.now), "less time than others have is looked at"


def test_calls_in_quiet_times_count_as_offered() -> None:
    door = Door({}, {}, routes=[(0, 1), (1,)])
    door.learn(0.001)
    door.learn(0.001, stage=1)
    for _ in range(2000):
        door.now += 0.01
        assert door.door.is_calm(0, 1, door.timeout, door.now)
        assert door.door.is_calm(1, 1, door.timeout, door.now)
    assert door.stages[0].offered.per_second == pytest.approx(100.0, rel=0.1)
    assert door.stages[1].offered.per_second == pytest.approx(200.0, rel=0.1)


def test_a_stage_that_has_lost_its_worker_is_not_calm() -> None:
    door = Door({})
    door.stages[0].worker_ready(2.0)
    door.learn(0.02)
    door.now += 1.0
    assert door.door.is_calm(0, 5, door.timeout, door.now)
    door.loads[0].workers = 0
    door.stages[0].worker_gone(door.now)
    assert not door.door.is_calm(0, 5, door.timeout, door.now)
    assert door.ask() is Reason.DEADLINE
    assert door.door.retry_after((0,), door.now) == pytest.approx(2.0)
    door.now += 1.5
    assert door.ask() is None, "half a second from now there is one"
    door.loads[0].workers = 1
    door.stages[0].worker_ready(2.0)
    assert door.door.is_calm(0, 5, door.timeout, door.now)


def test_of_very_many_answers_some_are_noted_and_a_change_shows_all_the_same() -> None:
    door = Door({})
    for _ in range(20):
        door.learn(0.0001, times=1000)
        door.fresh()
        door.ask()
    door.learn(0.0001, times=1000)
    assert door.stages[0].times.noted <= 256
    door.fresh()
    door.ask()
    # Few come in the next span, and so all of those after it are noted.
    door.now += 1.0
    door.learn(0.05, times=10)
    door.fresh()
    door.ask()
    door.learn(0.05, times=4)
    door.fresh()
    door.ask()
    assert door.stages[0].times.mean == pytest.approx(0.05)


@given(
    seconds=st.lists(st.floats(0.0001, 0.2), min_size=1, max_size=3),
    queued=st.lists(st.integers(0, 40), min_size=3, max_size=3),
    elsewhere=st.integers(0, 40),
    offered=st.floats(0, 200),
)
def test_where_it_is_calm_a_close_look_finds_nothing_either(
    seconds: list[float], queued: list[int], elsewhere: int, offered: float
) -> None:
    door = Door(*({} for _ in seconds))
    for stage, each in enumerate(seconds):
        door.learn(each, stage=stage)
    door.offer(offered)
    for stage, _ in enumerate(seconds):
        door.work(queued[stage], stage=stage)
    there = sum(queued[: len(seconds)]) + elsewhere
    if door.door.is_calm(0, there, door.timeout, door.now):
        assert door.ask() is None


@pytest.mark.parametrize(("done", "refused"), [(1.0, None), (0.4, Reason.OVERLOAD)])
def test_callers_who_wait_for_their_answers_are_no_overload_where_a_stage_becomes_slower(
    done: float, refused: Reason | None
) -> None:
    door = Door({}, timeout=10.0)
    stage = door.stages[0]
    # What was done in the same time could be done, though the latest answers took as long as if it could not.
    for _ in range(5):
        for counted, share in ((stage.offered, 1.0), (stage.done, done)):
            counted.roll(door.now)
            counted.count += int(1000 * share * counted.span)
        door.now += stage.offered.span
    door.learn(0.01)
    door.work(64)
    assert door.ask() is refused


@pytest.mark.parametrize("before", [0, 1])
def test_a_burst_after_a_silence_is_not_work_that_a_worker_has_been_silent_about(before: int) -> None:
    door = Door({})
    door.learn(0.001)
    door.now += 10.0
    load = door.loads[0]
    # All are sent in one turn: the worker begins the first of them at this moment, unless it has had one before.
    load.queued, load.units, load.in_flight = 10, 32 + before, 32 + before
    door.stages[0].sent(32, door.now)
    assert door.ask() is (Reason.DEADLINE if before else None)


@pytest.mark.parametrize(("slow", "refused"), [(1, None), (4, None), (40, Reason.OWN_TIME)])
def test_slow_calls_of_others_do_not_shut_out_one_that_may_be_quick(slow: int, refused: Reason | None) -> None:
    door = Door({"concurrency": 50})
    for _ in range(4):
        door.learn(1.2, times=slow * 10)
        door.learn(0.02, times=10 if slow < 40 else 1)
        door.now += 2.0
    # Something runs, and a slot is free.
    door.work(0, 2)
    assert door.ask() is refused
    assert door.is_late(0.9) is (refused is not None)


# -- batches that wait to fill -----------------------------------------------------------------------------------------

PATIENT = {"batch_size": 8, "max_wait": 5.0}


def test_a_call_is_not_refused_because_its_batch_might_wait_for_longer_than_it_has() -> None:
    door = Door(dict(PATIENT))
    door.learn(0.05, items=8)
    assert door.ask() is None
    assert door.ask(timeout=0.3) is None
    assert door.ask(timeout=0.04) is Reason.OWN_TIME


def test_waiting_at_one_stage_leaves_time_for_the_later_ones() -> None:
    door = Door(dict(PATIENT), dict(PATIENT))
    for stage in (0, 1):
        door.learn(0.05, stage=stage, items=8)
    for _ in range(2):
        assert door.ask() is None
    first, second = (stage.leeway for stage in door.stages)
    assert 0.05 <= second.seconds <= 0.3
    assert first.seconds == pytest.approx(2 * second.seconds)
    assert first.share == SHARE


def test_a_task_at_the_head_is_not_late_because_a_later_stage_would_wait_if_it_could() -> None:
    door = Door({}, dict(PATIENT))
    for stage in (0, 1):
        door.learn(0.05, stage=stage)
    assert door.ask() is None
    assert not door.is_late(0.2)
    assert door.is_late(0.09)


def test_while_a_later_stage_is_not_known_what_a_task_needs_is_not_either() -> None:
    door = Door(dict(PATIENT), {})
    door.learn(0.05, items=8)
    door.ask()
    assert door.stages[0].leeway.share == SHARE_AT_FIRST
    door.learn(0.05, stage=1)
    door.ask()
    door.ask()
    assert door.stages[0].leeway.share == SHARE
    door.stages[0].configure(batch_size=4, concurrency=1, max_wait=5.0, latency_target=0.0)
    assert door.stages[0].leeway.share == SHARE_AT_FIRST
