"""Without batching: each worker is sent a window of tasks ahead. Pure.

The window is the number of tasks that the worker begins in `loads.WINDOW_SECONDS` by its own measured time. So the pipe
of a quick worker is never empty between two tasks, and one write carries many. A slow model has a window of one, so
that no task waits behind another while a worker is free. Among workers with room, the one with the least measured work
ahead gets the task.
"""

from __future__ import annotations

from typing import Generic

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.policy import Pick, WorkerKey
from mosec_asgi.batching.queue import TaskQueue


class WindowPolicy(Generic[WorkerKey]):
    """Sends single tasks."""

    def __init__(self, *, ahead: bool = True) -> None:
        """Begin.

        Args:
            ahead: send concurrent workers more tasks than they run. Without, what has a higher priority, or belongs to
                another tenant, waits for none that was sent before it and has not been begun.
        """
        self._ahead = ahead

    def pick(self, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> Pick[WorkerKey] | None:
        """Return the worker that the next task is for, and how many go there before another may have its turn."""
        best: WorkerKey | None = None
        best_rank = (0.0, 0, 0)
        count = 0
        # What `Loads.add` has put on top of what a concurrent worker runs; nothing for others.
        spare = 0 if self._ahead else loads.concurrency // 4
        for worker, load in loads:
            room = load.window - len(load.sent) - spare
            if load.alone or room < 1:
                continue
            count = room if best is None else 1
            rank = (load.work, len(load.sent), load.order)
            if best is None or rank < best_rank:
                best, best_rank = worker, rank
        return None if best is None else Pick(best, queue.first(count))
