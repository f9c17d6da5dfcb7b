from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from fakes import new_task
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.policy.steering import Fit, Steering
from mosec_asgi.batching.task import Event, Task

FIXED, PER_ITEM = 0.005, 0.001
TARGET = 0.05
NOW = 100.0


def tasks(count: int, waited: float = 0.0, *, deadline: float = math.inf, cost: int = 1) -> list[Task]:
    made = [new_task(number, NOW - waited, deadline=deadline) for number in range(count)]
    for task in made:
        task.cost = cost
    return made


def steering(
    target: float = TARGET,
    size: int = 128,
    fixed: float = FIXED,
    per_item: float = PER_ITEM,
    amounts: Sequence[int] = (1, 4, 16, 64, 128),
    rules: Rules | None = None,
) -> Steering:
    made = Steering(target, size, rules or Rules())
    for amount in amounts:
        made.times.add(amount, fixed + per_item * amount)
    return made


def test_fresh_tasks_make_a_batch_that_ends_at_the_target() -> None:
    assert steering().fit(tasks(128), NOW, 1) == Fit(45, full=True)
    assert steering().fit(tasks(44), NOW, 1) == Fit(44, full=False)
    assert steering().fit(tasks(45), NOW, 1) == Fit(45, full=True)


def test_what_is_ahead_of_a_batch_on_its_worker_counts() -> None:
    assert steering().fit(tasks(128), NOW + 0.01, 1) == Fit(35, full=True)


def test_the_longer_the_first_has_waited_the_smaller_is_the_batch_down_to_the_floor() -> None:
    made = steering()
    floor = int(made.bounds(1).floor)
    assert 20 <= floor < 35
    assert made.fit(tasks(128, 0.01), NOW, 1).size == 35
    # What could be in time only in a smaller batch bounds nothing.
    assert made.fit(tasks(128, 0.03), NOW, 1).size == 45
    assert made.fit(tasks(128, 0.05), NOW, 1).size == 45


def test_where_a_whole_batch_is_overdue_before_it_begins_the_target_bounds_nothing() -> None:
    made = steering()
    late = [*tasks(45, 0.051), *tasks(83)]
    assert made.fit(late, NOW, 1) == Fit(128, full=True)
    # One that is in time still, or was when its worker begins, has the batches of the target.
    assert made.fit([*tasks(44, 0.051), *tasks(84, 0.049)], NOW, 1).size < 46
    assert made.fit(tasks(128, 0.045), NOW + 0.006, 1).size == 128
    # All fit the batch of the target: there is nothing to gain.
    assert made.fit(tasks(44, 9.0), NOW, 1) == Fit(44, full=False)


def test_beyond_the_target_batches_keep_the_deadlines_that_those_of_the_target_do_and_grow_by_steps() -> None:
    late = [*tasks(45, 0.051, deadline=NOW + 0.08), *tasks(83)]
    assert steering().fit(late, NOW, 1).size == 75
    # What cannot be in time in the batch of the target either bounds nothing.
    assert steering().fit([*tasks(45, 9.0, deadline=NOW + 0.04), *tasks(83)], NOW, 1).size == 128
    assert steering(amounts=(1, 4, 16, 32)).fit(tasks(128, 9.0), NOW, 1).size == 64


def test_beyond_the_target_costs_are_bounded_by_their_budget() -> None:
    made = steering(rules=Rules(max_cost=80), amounts=(1, 4, 16, 64, 128))
    assert made.fit(tasks(60, 9.0, cost=2), NOW, 1).size == 40
    assert made.fit(tasks(60, cost=2), NOW, 1).size == 22


def test_when_a_task_that_comes_is_done_is_told_by_what_each_worker_has() -> None:
    made = steering()
    loads: Loads[str] = Loads(batched=True, concurrency=1, ordered=True)
    assert made.done_in(0, loads, NOW) is None
    for worker in "ab":
        loads.add(worker)
    assert made.done_in(0, loads, NOW) == 0.0
    loads.give("a", given := tasks(20))
    assert made.done_in(0, loads, NOW) == 0.0
    loads.give("b", other := tasks(1, 0.0))
    for task in [*given, *other]:
        task.began = NOW - 0.002
    # Batches of 28 follow each other; `b` is free in 4 ms, `a` in 23.
    assert made.done_in(0, loads, NOW) == pytest.approx(0.004 + 0.033)
    assert made.done_in(28, loads, NOW) == pytest.approx(0.023 + 0.033)
    assert made.done_in(56, loads, NOW) == pytest.approx(0.004 + 2 * 0.033)
    # Sent ahead to `b`.
    loads.give("b", tasks(11)[1:])
    assert made.done_in(0, loads, NOW) == pytest.approx(0.019 + 0.033)


def test_when_a_task_is_done_is_not_told_where_costs_or_nothing_is_known() -> None:
    loads: Loads[str] = Loads(batched=True, concurrency=1, ordered=True)
    loads.add("a")
    assert steering(amounts=()).done_in(5, loads, NOW) is None
    assert steering(rules=Rules(max_cost=80)).done_in(5, loads, NOW) is None
    assert steering(0.001).done_in(5, loads, NOW) is None


def test_a_late_task_does_not_keep_those_behind_it_from_being_in_time() -> None:
    waiting = [*tasks(3, 0.04), *tasks(100, 0.012)]
    assert steering().fit(waiting, NOW, 1).size == 33


def test_a_members_deadline_bounds_a_batch_as_the_target_does() -> None:
    waiting = [*tasks(5), *tasks(1, deadline=NOW + 0.045), *tasks(60)]
    assert steering().fit(waiting, NOW, 1).size == 40


def test_many_with_short_deadlines_do_not_make_batches_small() -> None:
    made = steering()
    waiting = [*tasks(1, deadline=NOW + 0.007), *tasks(127)]
    assert made.fit(waiting, NOW, 1).size == 45


@given(
    st.floats(0.0, 0.04),
    st.floats(1e-5, 0.01),
    st.floats(0.002, 0.3),
    st.integers(1, 8),
    st.lists(st.floats(0.0, 0.4), min_size=1, max_size=60),
    st.floats(0.0, 0.1),
)
def test_no_batch_is_predicted_to_miss_what_a_smaller_one_above_the_floor_would_not(
    fixed: float, per_item: float, target: float, slots: int, waited: list[float], ahead: float
) -> None:
    made = steering(target, 60, fixed, per_item, amounts=(1, 4, 16, 60))
    waiting = [task for age in sorted(waited, reverse=True) for task in tasks(1, age)]
    start = NOW + ahead
    size, _ = made.fit(waiting, start, slots)
    assert 1 <= size <= len(waiting)
    if not made.reached:
        assert size == len(waiting)
        return
    of, floor = made.times.of, made.bounds(slots).floor
    allowed = max(1, int(made.bounds(slots).most))
    if size > allowed:
        # Beyond what is possible: all are late that there may be in a batch of the target.
        assert all(task.queued + target < start for task in waiting[:allowed])
        return
    assert size == 1 or of(size) <= target * (1 + 1e-6)
    for smaller in range(1, size):
        if smaller >= floor:
            for task in waiting[:smaller]:
                due = made.due(task)
                assert not start + of(smaller) + 1e-6 <= due < start + of(size) - 1e-6
    if size < len(waiting):
        assert size >= math.floor(floor + 1e-9)


def test_batches_of_the_floor_can_follow_each_other_within_the_target() -> None:
    made = steering()
    for slots in (1, 2, 4):
        floor, most, lasting = made.bounds(slots)
        assert made.times.of(lasting) * (1 + 1 / slots) == pytest.approx(TARGET)
        assert lasting <= floor <= most


def test_the_floor_does_most_of_what_the_largest_does_where_two_batches_do_not_fit_the_target() -> None:
    made = steering(fixed=0.03)
    floor, most, _ = made.bounds(1)
    assert floor / made.times.of(floor) == pytest.approx(0.95 * most / made.times.of(most), rel=1e-3)


def test_a_target_that_no_item_can_meet_is_no_target() -> None:
    made = steering(0.004)
    assert not made.reached
    assert made.fit(tasks(128, 3.0), NOW, 1) == Fit(128, full=True)
    assert made.size(1) == made.usual_size(1) == 128


def test_a_stage_begins_with_a_single_task_and_doubles() -> None:
    made = Steering(TARGET, 128, Rules())
    assert made.line(1) is None
    for expected in (1, 2, 4, 8):
        size = made.fit(tasks(128), NOW, 1).size
        assert size == expected
        made.learn(tasks(size), size, FIXED + PER_ITEM * size)


def test_an_idle_worker_waits_no_longer_than_one_more_task_may_come_without_harm() -> None:
    until = steering().patience(tasks(10), NOW)
    assert until == pytest.approx(NOW + TARGET - 0.016 - 0.001)
    # Those that are late already have nothing to lose.
    assert steering().patience(tasks(10, 1.0), NOW) == math.inf
    assert Steering(TARGET, 8, Rules()).patience(tasks(1), NOW) == NOW


def test_costs_count_where_the_stage_counts_them() -> None:
    rules = Rules(max_cost=1000)
    made = steering(rules=rules, per_item=0.0001, amounts=(10, 100, 1000))
    waiting = tasks(60, cost=30)
    assert made.amount(waiting) == 1800
    assert made.fit(waiting, NOW, 1) == Fit(15, full=True)
    padded = steering(rules=Rules(by_cost=True), per_item=0.0001, amounts=(10, 100, 1000))
    assert padded.amount([*tasks(3, cost=2), *tasks(1, cost=9)]) == 36
    assert padded.amount(tasks(3, cost=0)) == 1


def test_a_batch_whose_clients_left_says_nothing_by_being_quick() -> None:
    made = steering(amounts=(8,) * 8)
    left = tasks(8)
    for task in left:
        task.step(Event.SETTLE)
    before = made.times.of(8)
    for _ in range(8):
        made.learn(left, 8, 0.0001)
    assert made.times.of(8) == before
    for _ in range(8):
        made.learn(left, 8, 2 * before)
    assert made.times.of(8) > 1.5 * before


def test_of_a_batch_that_is_answered_in_parts_all_tasks_count() -> None:
    made = Steering(TARGET, 128, Rules())
    made.learn(tasks(2), 8, 0.013)
    assert made.times.largest == 8


def test_another_target_goes_for_the_next_batch_and_what_was_learned_stays() -> None:
    made = steering()
    made.configure(0.025, 128)
    assert made.fit(tasks(128), NOW, 1).size == 20
    made.configure(0.025, 10)
    assert made.fit(tasks(10), NOW, 1) == Fit(10, full=True)


def test_of_busy_workers_the_one_that_is_free_first_is_found_by_what_it_has() -> None:
    loads: Loads[str] = Loads(batched=True, concurrency=1, ordered=True)
    for worker, count in (("long", 40), ("short", 10)):
        loads.add(worker)
        given_to = tasks(count)
        for number, task in enumerate(given_to):
            task.id = number + 1000 * count
            task.began = NOW
        loads.give(worker, given_to)
    made = steering()
    found = made.first_to_be_free(loads, NOW + 0.005)
    assert found is not None
    assert found[0] == "short"
    assert found[1] == pytest.approx(NOW + 0.015)
    # One that is overdue may be free at any moment.
    late = made.first_to_be_free(loads, NOW + 9.0)
    assert late is not None
    assert late[1] == NOW + 9.0


def test_a_stage_that_takes_no_time_is_not_bounded() -> None:
    made = steering(fixed=0.0, per_item=0.0)
    assert made.fit(tasks(128), NOW, 1) == Fit(128, full=True)
    assert made.usual_size(1) == 128
