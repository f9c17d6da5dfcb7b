"""After a crash: a task that a dead worker had begun is run alone, before all others. Pure.

It goes to a worker that has nothing else, so that a task which kills workers takes no other task with it. A stream that
sends its first event has shown that it is harmless, and other tasks may join it (`Load.alone`). Other tasks wait until
such a task has found a worker that has nothing. With concurrent workers, which may have tasks for long, they do not
wait: the task goes to the worker that replaces the dead one.

The deadlines of such tasks bound how long that takes: a task for whose turn there is no time left is answered 408 as
soon as a worker is free, like any task at the head of a queue. The tasks are not run in halves, which would take fewer
turns: each half with a culprit in it would cost another worker, which may load for minutes, and with two attempts the
rest of that half would be answered 500 with the culprit.
"""

from __future__ import annotations

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.policy import Pick, WorkerKey
from mosec_asgi.batching.queue import TaskQueue


def picks(queue: TaskQueue, loads: Loads[WorkerKey]) -> list[Pick[WorkerKey]]:
    """Return a task that must be alone for each worker that has nothing."""
    empty = [worker for _, worker in sorted((load.order, worker) for worker, load in loads if not load.sent)]
    return [Pick(worker, [task]) for worker, task in zip(empty, queue.lone, strict=False)]


def holds_back_others(queue: TaskQueue, loads: Loads[WorkerKey]) -> bool:
    """Whether all others wait until those that must be alone are under way."""
    # Workers that are not concurrent soon finish what they have, so waiting keeps the order and costs little.
    return bool(queue.lone) and loads.concurrency == 1
