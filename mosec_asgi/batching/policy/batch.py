"""With batching: one central former fills batches. Pure.

A burst of `max_batch_size` tasks becomes one batch, and is not divided among the idle workers. A batch leaves when it
is full, or when its oldest task has waited `max_wait`, counted from that task's arrival at the stage. A busy worker is
sent one batch ahead (**prefetch**), but only a full one: a part of a batch can still grow here, and cannot once it is
sent.

*Waiting must pay.* Where `max_wait` was not set for the stage, an idle worker waits only where a whole batch comes in a
part of a batch's time, or for tasks that are likely to come back at once, and never longer than a batch takes
(`arrivals`).

*Waiting must not cost an answer.* No batch waits for longer than the deadlines of its tasks allow (`leeway`), whatever
`max_wait` says.
"""

from __future__ import annotations

from typing import Generic, NamedTuple

from mosec_asgi.batching.arrivals import Arrivals
from mosec_asgi.batching.leeway import Leeway
from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.policy import Pick, WorkerKey
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task


class Waiting(NamedTuple):
    """How long a batch may wait to fill.

    Attributes:
        max_wait: seconds that a task may wait for its batch to fill.
        arrivals: measurements by which an idle worker starts before `max_wait` where waiting does not pay; None for
            waiting in any case.
        leeway: what waiting must leave to a task of its time.
    """

    max_wait: float
    arrivals: Arrivals | None
    leeway: Leeway


class BatchPolicy(Generic[WorkerKey]):
    """Sends batches."""

    def __init__(self, max_batch_size: int, waiting: Waiting) -> None:
        """Set the bounds.

        Args:
            max_batch_size: the most tasks in a batch.
            waiting: how long a batch may wait to fill.
        """
        self._size = max_batch_size
        self._max_wait, self._arrivals, self._leeway = waiting

    def pick(self, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> Pick[WorkerKey] | float | None:
        """Return the next batch, or until when to wait for it to fill."""
        oldest = queue.head()
        if oldest is None:
            return None
        full = queue.others >= self._size
        worker = idle(loads)
        if worker is None:
            # Only a full batch goes ahead to a busy worker.
            worker = first_to_be_free(loads) if full else None
            if worker is None:
                return None
        elif not full and now < (until := self._wait_until(self._size, oldest, queue, loads, now)):
            until = self._bounded(until, oldest, queue)
            if now < until:
                return until
        return Pick(worker, queue.first(self._size))

    def _wait_until(self, size: int, oldest: Task, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> float:
        """Return until when an idle worker waits for a batch of `size` that begins with `oldest` to fill."""
        most = oldest.queued + self._max_wait
        if self._arrivals is None:
            return most
        if self._arrivals.will_fill(size, now):
            return min(most, oldest.queued + self._arrivals.batch_seconds)
        return self._arrivals.linger_until(queue.live, loads.in_flight, loads.free, self._max_wait)

    def _bounded(self, until: float, oldest: Task, queue: TaskQueue) -> float:
        """Return until when a batch that `oldest` has begun may wait: `until`, or earlier if a task would be late."""
        queued, leeway = oldest.queued, self._leeway
        wait, left = until - queued, queue.soonest - queued
        # So it is nearly always.
        if wait <= left * leeway.share and wait <= left - leeway.seconds:
            return until
        return min(until, queued + leeway.most(queue.earliest_deadline() - queued))


def idle(loads: Loads[WorkerKey]) -> WorkerKey | None:
    """Return the worker that runs the fewest batches and has room to run one more at once."""
    idle = [((len(load.batches), load.order), worker) for worker, load in loads if loads.has_room(load)]
    return min(idle, key=lambda pair: pair[0])[1] if idle else None


def first_to_be_free(loads: Loads[WorkerKey]) -> WorkerKey | None:
    """Return the worker with all that it can run and nothing ahead that will be free first."""
    ready = [
        ((len(load.sent), load.order), worker)
        for worker, load in loads
        if len(load.batches) == loads.concurrency and not load.alone
    ]
    return min(ready, key=lambda pair: pair[0])[1] if ready else None
