"""The policy without batching, by itself; `test_scheduler` shows what comes of it."""

from __future__ import annotations

from fakes import new_task

from mosec_asgi.batching.loads import WINDOW_SECONDS, Loads
from mosec_asgi.batching.policy import Pick
from mosec_asgi.batching.policy.window import WindowPolicy
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task

POLICY: WindowPolicy[str] = WindowPolicy()


def workers(**windows: int) -> Loads[str]:
    """Return workers that take so many tasks at a time."""
    loads: Loads[str] = Loads(batched=False, concurrency=1, ordered=True)
    for worker, window in windows.items():
        loads.add(worker)
        loads[worker].window = window
    return loads


def waiting(count: int) -> tuple[TaskQueue, list[Task]]:
    queue = TaskQueue()
    tasks = [new_task(number, 0.0) for number in range(count)]
    for task in tasks:
        queue.append(task)
    return queue, tasks


def test_the_only_worker_with_room_is_given_all_that_it_has_room_for() -> None:
    queue, tasks = waiting(5)
    loads = workers(a=3, b=1)
    loads.give("b", [new_task(99, 0.0)])
    assert POLICY.pick(queue, loads, 0.0) == Pick("a", tasks[:3])


def test_of_two_with_room_the_one_with_less_ahead_is_given_one() -> None:
    queue, tasks = waiting(5)
    loads = workers(a=3, b=3)
    loads.give("a", [new_task(99, 0.0)])
    assert POLICY.pick(queue, loads, 0.0) == Pick("b", tasks[:1])


def test_what_counts_is_the_measured_work() -> None:
    queue, tasks = waiting(5)
    loads = workers(quick=1, slow=1)
    loads["quick"].measure(WINDOW_SECONDS / 10)
    loads["slow"].measure(WINDOW_SECONDS / 2)
    loads.give("quick", [new_task(90, 0.0), new_task(91, 0.0)])
    loads.give("slow", [new_task(92, 0.0)])
    assert POLICY.pick(queue, loads, 0.0) == Pick("quick", tasks[:1])


def test_a_worker_that_runs_a_task_alone_is_passed_over() -> None:
    queue, tasks = waiting(2)
    loads = workers(a=5, b=5)
    loads["a"].alone = True
    assert POLICY.pick(queue, loads, 0.0) == Pick("b", tasks)
    loads["b"].alone = True
    assert POLICY.pick(queue, loads, 0.0) is None


def test_without_room_there_is_nothing_to_do_until_something_happens() -> None:
    queue, _ = waiting(2)
    loads = workers(a=1)
    loads.give("a", [new_task(99, 0.0)])
    assert POLICY.pick(queue, loads, 0.0) is None
    assert queue.live == 2
