"""With batching and rules: batches by cost, key, priority and tenant. Pure.

As `batch`, with two differences. A batch is full when its tasks are as many as there may be, or cost as much; and it is
of one key. And the next batch begins with the next task in the queue's order, and holds those of its key behind it, as
far as they fit.

*Which key comes first.* If any task has waited `max_wait`, an idle worker begins with the next task in order, whether
its key has filled a batch or not. Before that, it begins with the next full lane. Where there is neither priority nor
tenant, the next task in order is the one that has waited longest: a rare key waits `max_wait` and for those that came
before it, never for keys that come more often.

*Who would be late.* If a task's deadline leaves no more time for waiting (`leeway`), an idle worker begins with the
batch that this task is in, whose key may come after others. Where there are priorities or tenants, it begins with the
next task in order even then.

Where there are priorities or tenants, no batch is sent ahead to a busy worker: what comes later and has more right to
the worker would wait for it.

*Like costs.* With `by_cost` a batch grows from its first task to both sides in order of cost, to where it pads least,
and no further once more than `MOST_PADDING` of it would be padding. The batch's cost is its number of tasks times the
largest. Its first task is the next in order, as ever, so that none is left behind for being unlike the others.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.ordered_queue import OrderedQueue
from mosec_asgi.batching.policy import Pick, WorkerKey
from mosec_asgi.batching.policy.batch import BatchPolicy, Waiting, first_to_be_free, idle
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task

# Of a batch of like costs: a larger one takes more time than two of them.
MOST_PADDING = 0.15


class OrderedBatchPolicy(BatchPolicy[WorkerKey]):
    """Sends batches of an `OrderedQueue`."""

    def __init__(self, max_batch_size: int, waiting: Waiting, rules: Rules) -> None:
        """Set the bounds; see `BatchPolicy`.

        Args:
            max_batch_size: the most tasks in a batch.
            waiting: how long a batch may wait to fill.
            rules: which tasks share a batch.
        """
        super().__init__(max_batch_size, waiting)
        self._budget = rules.max_cost or math.inf
        self._by_cost = rules.by_cost

    def pick(self, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> Pick[WorkerKey] | float | None:
        """Return the next batch, or until when to wait for it to fill."""
        assert isinstance(queue, OrderedQueue)
        oldest = queue.head()
        if oldest is None:
            return None
        first = queue.full()
        worker = idle(loads)
        if worker is None:
            # What is sent ahead cannot be overtaken, so that nothing is where somebody's turn may come.
            worker = first_to_be_free(loads) if first is not None and not queue.contested else None
            if worker is None:
                return None
        else:
            leader = queue.leader()
            if leader is not None and queue.is_full(leader):
                first = leader
            else:
                until = self._wait_until(self._size, oldest, queue, loads, now)
                if now >= until:
                    first = leader
                elif now >= (until := self._bounded(until, oldest, queue)):
                    first = self._in_a_hurry(queue)
                elif first is None:
                    return until
        assert first is not None
        return Pick(worker, self._batch(first, queue))

    def _in_a_hurry(self, queue: OrderedQueue) -> Task | None:
        """Return the first task of the batch that cannot wait any longer."""
        if queue.contested:
            return queue.leader()
        pressing = queue.most_pressing()
        # A batch by cost grows from its first task. Any other holds its whole lane, if that is not full.
        return pressing if self._by_cost else queue.lane(pressing).tasks.first()

    def _batch(self, first: Task, queue: OrderedQueue) -> list[Task]:
        lane = queue.lane(first)
        if self._by_cost:
            return alike(first, lane.by_cost, self._size, self._budget)
        # Where priorities and tenants are mixed, another may be the first of its key alone.
        others = (task for task in lane.tasks if task is not first)
        return fitting(chain((first,), others), self._size, self._budget)


def fitting(tasks: Iterable[Task], size: int, budget: float) -> list[Task]:
    """Return the first tasks, as many as fit into a batch, and one at least.

    Args:
        tasks: in order.
        size: the most of them.
        budget: the most that they may cost together.
    """
    batch: list[Task] = []
    left = budget
    for task in tasks:
        left -= task.cost
        if batch and left < 0:
            break
        batch.append(task)
        if len(batch) == size:
            break
    return batch


def alike(first: Task, by_cost: Sequence[tuple[int, int, Task]], size: int, budget: float) -> list[Task]:
    """Return a batch of tasks of like cost, in order of cost.

    Args:
        first: is in it in any case.
        by_cost: the tasks by cost: the cost, the number and the task of each; `first` is one of them.
        size: the most of them.
        budget: the most that the largest may cost, times their number.
    """
    low = high = bisect_left(by_cost, (first.cost, first.number))
    cost = first.cost
    while (count := high - low + 2) <= size:
        most = by_cost[high][0]
        # What is padded if the batch grows by the one below its smallest, or by the one above its largest.
        below = above = math.inf
        if low and _may_be(count * most, cost + by_cost[low - 1][0], budget):
            below = most - by_cost[low - 1][0]
        if high + 1 < len(by_cost) and _may_be(count * (more := by_cost[high + 1][0]), cost + more, budget):
            above = (count - 1) * (more - most)
        if below == above == math.inf:
            break
        if below <= above:
            low -= 1
            cost += by_cost[low][0]
        else:
            high += 1
            cost += by_cost[high][0]
    return [task for _, _, task in by_cost[low : high + 1]]


def _may_be(padded: int, cost: int, budget: float) -> bool:
    """Whether a batch is within its budget, and is not mostly padding."""
    return padded <= budget and padded * (1.0 - MOST_PADDING) <= cost
