"""Tasks that must be run alone, by themselves; `test_scheduler` shows what comes of it."""

from __future__ import annotations

import pytest
from fakes import new_task

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.policy import Pick, quarantine
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Event, Task


def workers(*names: str, concurrency: int = 1) -> Loads[str]:
    loads: Loads[str] = Loads(batched=False, concurrency=concurrency, ordered=True)
    for worker in names:
        loads.add(worker)
    return loads


def lone(count: int) -> tuple[TaskQueue, list[Task]]:
    """Return a queue of tasks whose worker has died with them, and another task."""
    queue = TaskQueue()
    tasks = [new_task(number, 0.0) for number in range(count)]
    for task in tasks:
        queue.append(task)
    queue.take(tasks)
    for task in tasks:
        task.step(Event.DISPATCH)
        task.attempts = 1
    queue.requeue(tasks)
    queue.append(new_task(99, 0.0))
    return queue, tasks


def test_each_worker_that_has_nothing_is_given_one() -> None:
    queue, tasks = lone(3)
    loads = workers("a", "b", "c")
    loads.give("b", [new_task(50, 0.0)])
    assert quarantine.picks(queue, loads) == [Pick("a", [tasks[0]]), Pick("c", [tasks[1]])]


def test_the_worker_used_longest_ago_is_given_the_oldest() -> None:
    queue, tasks = lone(2)
    loads = workers("a", "b")
    loads.give("a", [new_task(50, 0.0)])
    loads.answered("a", [50], 1.0)
    assert quarantine.picks(queue, loads) == [Pick("b", [tasks[0]]), Pick("a", [tasks[1]])]


def test_a_task_that_need_not_be_alone_is_not_given_here() -> None:
    queue, tasks = lone(1)
    assert quarantine.picks(queue, workers("a", "b")) == [Pick("a", tasks)]
    assert quarantine.picks(TaskQueue(), workers("a")) == []


@pytest.mark.parametrize("concurrency", [1, 4])
def test_others_wait_behind_them_where_a_worker_soon_has_nothing(concurrency: int) -> None:
    queue, tasks = lone(1)
    loads = workers("a", concurrency=concurrency)
    assert quarantine.holds_back_others(queue, loads) == (concurrency == 1)
    queue.take(tasks)
    assert not quarantine.holds_back_others(queue, loads)
