"""The package's own scheduler, behind the interface of the simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.task import Task
from mosec_asgi.lazy_timer import delay_until
from mosec_asgi.messages import Call, Chunk, Outcome
from policies.simulation import Job, Orders

# What a stage has where its `max_wait_time` is unset: the service's default.
DEFAULT_WAIT = 0.01


class _Nobody:
    """Waits for no outcome: the simulation notes what is answered."""

    def settled(self, outcome: Outcome) -> None:
        """Do nothing."""

    def streamed(self, chunk: Chunk) -> None:
        """Do nothing."""


_NOBODY = _Nobody()


class Ours:
    """A `Scheduler`, asked as a stage asks it, at the end of each turn of the loop."""

    def __init__(self, workers: int, batch: int, max_wait: float | None, target: float = 0.0) -> None:
        """Begin with idle workers.

        Args:
            workers: how many.
            batch: the most tasks in a batch.
            max_wait: seconds; None where the user has set none.
            target: of the latency, in seconds; 0 for none.
        """
        wait = DEFAULT_WAIT if max_wait is None else max_wait
        self._scheduler: Scheduler[int] = Scheduler(batch, wait, adaptive=max_wait is None, latency_target=target)
        for worker in range(workers):
            self._scheduler.add_worker(worker)
        self._jobs: dict[int, Job] = {}

    def arrived(self, job: Job, now: float) -> None:
        """Take in a job."""
        self._jobs[job.number] = job
        call = Call(job.number, job.route, b"", "")
        self._scheduler.enqueue(Task(call, _NOBODY, (0,), now, math.inf), now)

    def answered(self, worker: int, jobs: Sequence[Job], seconds: float, now: float) -> None:
        """Hear that a worker has answered a batch."""
        for task in self._scheduler.answered(worker, [job.number for job in jobs], seconds, now):
            task.settle()
            del self._jobs[task.id]

    def decide(self, now: float) -> tuple[Orders, float | None]:
        """Return the batches to send, and when to ask again."""
        assignments, wake_at = self._scheduler.assign(now)
        return [(each.worker, [self._jobs[task.id] for task in each.tasks]) for each in assignments], wake_at

    def timer(self, when: float, now: float) -> float:
        """Return when the event loop's timer fires: after whole milliseconds."""
        # In a service some time passes between an arrival and this. Here none does, and without the nanosecond an error
        # of rounding would be a millisecond.
        return max(when, now + delay_until(when - 1e-9, now))
