"""Batches at a stage with a `latency_target`: as `batch` and `ordered`, and of a size with which they meet it. Pure.

`steering` says how large a batch may be. A batch that may not grow is full. Only such a one is sent ahead to a busy
worker.
"""

from __future__ import annotations

import math

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.ordered_queue import OrderedQueue
from mosec_asgi.batching.policy import Pick, WorkerKey
from mosec_asgi.batching.policy.batch import BatchPolicy, Waiting, idle
from mosec_asgi.batching.policy.ordered import OrderedBatchPolicy, alike
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.policy.steering import Fit, Steering
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task


class SteeredBatchPolicy(BatchPolicy[WorkerKey]):
    """Sends batches in order of arrival."""

    def __init__(self, max_batch_size: int, waiting: Waiting, steering: Steering) -> None:
        """Set the bounds; see `BatchPolicy`.

        Args:
            max_batch_size: the most tasks in a batch.
            waiting: how long a batch may wait to fill.
            steering: bounds the batches by the target.
        """
        super().__init__(max_batch_size, waiting)
        self._steering = steering

    def pick(self, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> Pick[WorkerKey] | float | None:
        """Return the next batch, or until when to wait for it to fill."""
        oldest = queue.head()
        if oldest is None:
            return None
        found = _worker(self._steering, loads, now)
        if found is None:
            return None
        worker, start, ahead = found
        tasks = queue.first(self._size)
        fit = self._steering.fit(tasks, start, _slots(loads))
        if not fit.full:
            if ahead:
                return None
            size = self._steering.size(_slots(loads))
            until = min(self._wait_until(size, oldest, queue, loads, now), self._steering.patience(tasks, now))
            if now < until:
                until = self._bounded(until, oldest, queue)
            if now < until:
                return until
        return Pick(worker, tasks[: fit.size])


class SteeredOrderedBatchPolicy(OrderedBatchPolicy[WorkerKey]):
    """Sends batches of an `OrderedQueue`."""

    def __init__(self, max_batch_size: int, waiting: Waiting, rules: Rules, steering: Steering) -> None:
        """Set the bounds; see `OrderedBatchPolicy`.

        Args:
            max_batch_size: the most tasks in a batch.
            waiting: how long a batch may wait to fill.
            rules: which tasks share a batch.
            steering: bounds the batches by the target.
        """
        super().__init__(max_batch_size, waiting, rules)
        self._steering = steering

    def pick(self, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> Pick[WorkerKey] | float | None:
        """Return the next batch, or until when to wait for it to fill."""
        assert isinstance(queue, OrderedQueue)
        oldest, leader = queue.head(), queue.leader()
        if oldest is None or leader is None:
            return None
        found = _worker(self._steering, loads, now)
        if found is None:
            return None
        worker, start, ahead = found
        if ahead and queue.contested:
            # What is sent ahead cannot be overtaken.
            return None
        tasks, fit = self._steered(leader, queue, start, loads)
        if fit.full or queue.is_full(leader):
            return Pick(worker, tasks[: fit.size])
        until = math.inf
        if not ahead:
            size = self._steering.size(_slots(loads))
            until = min(self._wait_until(size, oldest, queue, loads, now), self._steering.patience(tasks, now))
            if now >= until:
                return Pick(worker, tasks[: fit.size])
            until = self._bounded(until, oldest, queue)
            if now >= until and (pressing := self._in_a_hurry(queue)) is not None:
                tasks, fit = self._steered(pressing, queue, start, loads)
                return Pick(worker, tasks[: fit.size])
        first = queue.full()
        if first is None:
            return None if ahead else until
        tasks, fit = self._steered(first, queue, start, loads)
        return Pick(worker, tasks[: fit.size])

    def _steered(
        self, first: Task, queue: OrderedQueue, start: float, loads: Loads[WorkerKey]
    ) -> tuple[list[Task], Fit]:
        """Return the batch that begins with a task, and how many of it there may be."""
        tasks = self._batch(first, queue)
        fit = self._steering.fit(tasks, start, _slots(loads))
        if self._by_cost and fit.size < len(tasks):
            # In order of cost the first of the tasks need not be the one that the batch is for.
            allowed = self._steering.amount(tasks[: fit.size])
            tasks = alike(first, queue.lane(first).by_cost, self._size, min(self._budget, allowed))
            fit = Fit(len(tasks), full=True)
        return tasks, fit


def _slots(loads: Loads[WorkerKey]) -> int:
    """Return how many batches run at a time."""
    return max(1, len(loads)) * loads.concurrency


def _worker(steering: Steering, loads: Loads[WorkerKey], now: float) -> tuple[WorkerKey, float, bool] | None:
    """Return the worker for the next batch, when it begins that, and whether that is sent ahead."""
    worker = idle(loads)
    if worker is not None:
        return worker, now, False
    if not steering.times.known:
        # When the worker will be free is not known, nor how large a batch may be then.
        return None
    found = steering.first_to_be_free(loads, now)
    return None if found is None else (*found, True)
