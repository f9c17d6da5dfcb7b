from __future__ import annotations

import math
from typing import Any

from fakes import new_task

from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.task import Task

TARGET = 0.05
NOW = 100.0


def scheduler(
    *workers: str,
    max_wait: float = 0.0,
    size: int = 128,
    rules: Rules | None = None,
    target: float = TARGET,
    **options: Any,
) -> Scheduler[str]:
    """Return a scheduler of a stage that has learned what its batches take: 5 ms and 1 ms an item."""
    made: Scheduler[str] = Scheduler(size, max_wait, rules=rules, latency_target=target, **options)
    for worker in workers:
        made.add_worker(worker)
    if made.steering is not None:
        for amount in (1, 4, 16, 64, 128):
            made.steering.times.add(amount, 0.005 + 0.001 * amount)
    return made


def come(made: Scheduler[str], count: int, now: float = NOW, first: int = 0, **labels: Any) -> list[Task]:
    tasks = [new_task(first + number, now, deadline=math.inf) for number in range(count)]
    for task in tasks:
        for name, value in labels.items():
            setattr(task, name, value)
        made.enqueue(task, now)
    return tasks


def sent(made: Scheduler[str], now: float = NOW) -> list[tuple[str, int]]:
    assignments, _ = made.assign(now)
    return [(assignment.worker, len(assignment.tasks)) for assignment in assignments]


def test_a_stage_without_a_target_has_no_steering_and_neither_has_one_without_batching() -> None:
    assert scheduler(target=0.0).steering is None
    assert scheduler(size=1).steering is None
    assert scheduler(target=0.0).batch_line is None


def test_a_burst_becomes_batches_that_end_at_the_target() -> None:
    made = scheduler("a")
    come(made, 60)
    assert sent(made) == [("a", 45)]
    assert made.queued == 15


def test_nothing_goes_ahead_to_a_busy_worker_that_can_still_grow() -> None:
    made = scheduler("a", "b")
    come(made, 100)
    assert sent(made) == [("a", 45), ("b", 45)]
    # In 20 ms there would be 15 ms left for those, fewer than the floor: they bound nothing, and may become more.
    assert sent(made, NOW + 0.03) == []


def test_a_batch_that_cannot_grow_goes_ahead_to_the_worker_that_is_free_first() -> None:
    made = scheduler("a", "b")
    come(made, 45)
    assert sent(made) == [("a", 45)]
    come(made, 10, NOW, first=100)
    assert sent(made) == [("b", 10)]
    come(made, 40, NOW + 0.005, first=200)
    # "b" is free at 15 ms; from then on there are 40 ms for those that came at 5 ms, which is a batch of 35.
    assert sent(made, NOW + 0.005) == [("b", 35)]


def test_nothing_goes_ahead_while_nothing_is_known() -> None:
    made: Scheduler[str] = Scheduler(8, 0.0, latency_target=TARGET)
    made.add_worker("a")
    come(made, 20)
    assert sent(made) == [("a", 1)]
    assert sent(made, NOW + 0.001) == []


def test_an_idle_worker_waits_for_a_batch_to_fill_until_one_more_task_would_be_too_many() -> None:
    made = scheduler("a", max_wait=10.0)
    come(made, 10)
    assignments, wake_at = made.assign(NOW)
    assert not assignments
    assert wake_at is not None
    assert abs(wake_at - (NOW + TARGET - 0.016 - 0.001)) < 1e-9
    assert sent(made, wake_at) == [("a", 10)]


def test_what_a_batch_takes_is_learned_from_its_answers() -> None:
    made: Scheduler[str] = Scheduler(128, 0.0, latency_target=TARGET)
    made.add_worker("a")
    now = NOW
    for count in (1, 2, 3, 1, 4, 6, 9, 12, 20, 30):
        come(made, count, now, first=1000 * count)
        assert sent(made, now) == [("a", count)]
        now += 0.005 + 0.001 * count
        for task in made.answered("a", [1000 * count + number for number in range(count)], 0.001, now):
            task.settle()
        now += 1.0
    line = made.batch_line
    assert line is not None
    assert (round(line.fixed, 5), round(line.per_unit, 5), int(line.most)) == (0.005, 0.001, 45)
    assert made.together == 0


def test_another_target_holds_at_once_and_none_ends_the_steering() -> None:
    made = scheduler("a")
    come(made, 128)
    made.configure(128, 0.0, adaptive=False, concurrency=1, latency_target=0.025)
    assert made.together == 20
    assert sent(made) == [("a", 20), ("a", 20)]
    made.configure(128, 0.0, adaptive=False, concurrency=1)
    assert made.steering is None
    assert made.together == 88


def test_priority_and_keys_keep_their_rules_under_a_target() -> None:
    made = scheduler("a", rules=Rules(keyed=True))
    come(made, 60, key="x")
    urgent = come(made, 3, first=500, key="y", priority=5)
    assignments, _ = made.assign(NOW)
    assert [each.tasks for each in assignments] == [urgent]


def test_costs_bound_a_batch_under_a_target() -> None:
    made = scheduler("a", rules=Rules(max_cost=1000))
    come(made, 60, cost=3)
    assert sent(made) == [("a", 15), ("a", 15)]


def test_a_batch_of_like_costs_holds_the_task_whose_turn_it_is() -> None:
    made = scheduler("a", rules=Rules(by_cost=True))
    [dear] = come(made, 1, cost=11)
    come(made, 20, first=10, cost=10)
    assignment = made.assign(NOW)[0][0]
    assert dear in assignment.tasks
    assert 1 < len(assignment.tasks) <= 4


def test_where_a_target_bounds_batches_the_admission_reckons_with_these() -> None:
    made = scheduler("a")
    assert made.varies
    assert made.usual_size < 45
    assert not scheduler("a", target=0.0).varies
    made.configure(128, 0.0, adaptive=False, concurrency=1)
    assert not made.varies
    assert made.usual_size == 128


def test_a_batch_that_waits_to_fill_is_sent_before_a_task_would_miss_its_deadline() -> None:
    for rules in (None, Rules(keyed=True)):
        made = scheduler("a", max_wait=60.0, size=8, target=100.0, rules=rules)
        made.leeway.learn(0.5, known=True)
        come(made, 1)
        made.enqueue(new_task(1, NOW, deadline=NOW + 2.0), NOW)
        assert made.assign(NOW + 0.1) == ([], NOW + 1.5)
        assert sent(made, NOW + 1.5) == [("a", 2)]


def test_the_key_of_a_task_in_a_hurry_comes_first_under_a_target_too() -> None:
    made = scheduler("a", max_wait=60.0, size=8, target=100.0, rules=Rules(keyed=True))
    made.leeway.learn(0.5, known=True)
    come(made, 3, key="a")
    hurried = new_task(10, NOW, deadline=NOW + 2.0)
    hurried.key = "b"
    made.enqueue(hurried, NOW)
    assert sent(made, NOW + 1.5) == [("a", 1)]
