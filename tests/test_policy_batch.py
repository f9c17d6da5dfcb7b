"""The policy with batching, by itself; `test_scheduler` shows what comes of it."""

from __future__ import annotations

import pytest
from fakes import new_task

from mosec_asgi.batching.arrivals import Arrivals
from mosec_asgi.batching.leeway import Leeway
from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.policy import Pick
from mosec_asgi.batching.policy.batch import BatchPolicy, Waiting
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task

SIZE = 4
POLICY: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(1.0, None, Leeway()))


def workers(*names: str, concurrency: int = 1) -> Loads[str]:
    loads: Loads[str] = Loads(batched=True, concurrency=concurrency, ordered=False)
    for worker in names:
        loads.add(worker)
    return loads


def waiting(count: int, now: float = 10.0) -> tuple[TaskQueue, list[Task]]:
    queue = TaskQueue()
    tasks = [new_task(number, now) for number in range(count)]
    for task in tasks:
        queue.append(task)
    return queue, tasks


def busy(loads: Loads[str], worker: str, batches: int = 1, size: int = 1) -> None:
    for _ in range(batches):
        loads.give(worker, [new_task(1000 + loads.in_flight + number, 0.0) for number in range(size)])


def test_an_empty_queue_has_nothing_to_send() -> None:
    assert POLICY.pick(TaskQueue(), workers("a"), 10.0) is None


def test_a_full_batch_leaves_at_once() -> None:
    queue, tasks = waiting(SIZE + 2)
    assert POLICY.pick(queue, workers("a"), 10.0) == Pick("a", tasks[:SIZE])


def test_a_part_of_a_batch_waits_for_its_oldest_to_have_waited() -> None:
    queue, tasks = waiting(2)
    assert POLICY.pick(queue, workers("a"), 10.5) == 11.0
    assert POLICY.pick(queue, workers("a"), 11.0) == Pick("a", tasks)


def test_of_the_idle_workers_the_one_with_fewest_batches_that_was_used_longest_ago_gets_it() -> None:
    queue, tasks = waiting(SIZE)
    loads = workers("a", "b", "c", concurrency=2)
    busy(loads, "a")
    busy(loads, "b")
    loads.answered("b", [1001], 1.0)
    assert POLICY.pick(queue, loads, 10.0) == Pick("c", tasks)


def test_only_a_full_batch_goes_ahead_to_a_busy_worker_and_only_one() -> None:
    loads = workers("a")
    busy(loads, "a")
    part, _ = waiting(SIZE - 1)
    assert POLICY.pick(part, loads, 99.0) is None
    full, tasks = waiting(SIZE)
    assert POLICY.pick(full, loads, 10.0) == Pick("a", tasks)
    busy(loads, "a")
    assert POLICY.pick(full, loads, 10.0) is None, "it has one ahead"


def test_the_batch_ahead_goes_to_whoever_has_least_to_answer() -> None:
    loads = workers("a", "b")
    busy(loads, "a", size=3)
    busy(loads, "b", size=2)
    queue, tasks = waiting(SIZE)
    assert POLICY.pick(queue, loads, 10.0) == Pick("b", tasks)


def test_a_worker_that_runs_a_task_alone_is_passed_over() -> None:
    loads = workers("a")
    busy(loads, "a")
    loads["a"].alone = True
    queue, _ = waiting(SIZE)
    assert POLICY.pick(queue, loads, 10.0) is None


def test_where_nothing_is_known_to_pay_an_adaptive_stage_waits_for_nothing() -> None:
    policy: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(1.0, Arrivals(), Leeway()))
    queue, tasks = waiting(2)
    assert policy.pick(queue, workers("a"), 10.0) == Pick("a", tasks)


@pytest.mark.parametrize("max_wait", [0.3, 1e6])
def test_where_a_batch_fills_quickly_an_adaptive_stage_waits_but_no_longer_than_a_batch_takes(
    max_wait: float,
) -> None:
    arrivals = Arrivals()
    arrivals.answered(9.0, 1, 1.0)
    for number in range(200):
        arrivals.arrived(9.0 + number / 200, 10)
    policy: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(max_wait, arrivals, Leeway()))
    queue, tasks = waiting(2)
    until = policy.pick(queue, workers("a"), 10.0)
    assert until == 10.0 + min(max_wait, 1.0)
    assert policy.pick(queue, workers("a"), until) == Pick("a", tasks)


def measured(seconds: float) -> Leeway:
    leeway = Leeway()
    leeway.learn(seconds, known=True)
    return leeway


def test_a_batch_is_sent_before_one_of_its_tasks_would_miss_its_deadline() -> None:
    policy: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(60.0, None, measured(0.5)))
    queue, tasks = waiting(2)
    queue.append(hurried := new_task(2, 10.0, deadline=12.0))
    assert policy.pick(queue, workers("a"), 10.1) == 11.5
    assert policy.pick(queue, workers("a"), 11.5) == Pick("a", [*tasks, hurried])


def test_while_nothing_is_known_a_batch_waits_for_half_of_its_time_at_most() -> None:
    policy: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(60.0, None, Leeway()))
    queue = TaskQueue()
    queue.append(task := new_task(0, 10.0, deadline=12.0))
    assert policy.pick(queue, workers("a"), 10.0) == 11.0
    assert policy.pick(queue, workers("a"), 11.0) == Pick("a", [task])


def test_a_stage_that_waits_where_it_pays_keeps_deadlines_too() -> None:
    arrivals = Arrivals()
    arrivals.answered(9.0, 1, 1.0)
    for number in range(200):
        arrivals.arrived(9.0 + number / 200, 10)
    policy: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(60.0, arrivals, measured(0.5)))
    queue = TaskQueue()
    queue.append(task := new_task(0, 10.0, deadline=10.7))
    until = policy.pick(queue, workers("a"), 10.0)
    assert until == pytest.approx(10.2)
    assert policy.pick(queue, workers("a"), 10.21) == Pick("a", [task])


@pytest.mark.parametrize(
    ("max_wait", "seconds", "until"), [(4.0, 5.0, 14.0), (6.0, 5.0, 15.0), (8.0, 0.5, 18.0), (9.2, 0.5, 19.0)]
)
def test_both_what_a_task_needs_and_a_share_of_its_time_bound_the_wait(
    max_wait: float, seconds: float, until: float
) -> None:
    policy: BatchPolicy[str] = BatchPolicy(SIZE, Waiting(max_wait, None, measured(seconds)))
    queue = TaskQueue()
    queue.append(new_task(0, 10.0, deadline=20.0))
    assert policy.pick(queue, workers("a"), 10.0) == until
