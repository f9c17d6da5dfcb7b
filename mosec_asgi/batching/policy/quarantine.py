"""After a crash: a task that a dead worker had begun is run alone, before all others. Pure.

It goes to a worker that has nothing else, so that if it is the one that kills workers, it kills alone. A stream has
shown that it does not with its first event, and others may join it then (`Load.alone`). Until some worker has nothing,
the others wait behind it; not so where workers are concurrent and may have something for long: the one that takes the
dead one's place has nothing.

How long that takes is bounded by their deadlines: those for whose turn there is no time left are answered (408) as soon
as a worker is free and they are seen to be late, as any task at the head of a queue. They are not run in halves, which
would take fewer turns: each half with a culprit in it would cost a worker more, which may load for minutes, and with
two attempts the rest of that half would share the culprit's fate.
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
    # What workers have is soon done, and then one of them has nothing: order is kept.
    return bool(queue.lone) and loads.concurrency == 1
