"""How large a batch may be at a stage with a `latency_target`. Pure.

A task is **due** when it has been at the stage for the target, or at its deadline where that comes first. By what
batches take (`batch_time`) a batch is as large as it can be with all its tasks done when they are due: counted from
now on an idle worker, and on a busy one from when that will be done with what it has.

*The floor.* Where many wait, the first of them is nearly due. If batches were made small for its sake, they would do
less, more tasks would wait, and batches would become smaller still, down to single tasks: the stage would do the least
when it has the most to do. So no batch is made smaller than a certain size, the floor. What is due before a batch of
that size would be done is late or nearly so. It bounds nothing, and runs with the others. The floor is the larger of

- the size of batches that can follow each other for ever within the target. A task that just misses a batch waits for
  it, or with `n` workers for about `1/n` of it, and then takes one more: `time * (1 + 1/n) <= target`. Below the load
  that batches of this size bear, any queue gets shorter, so that the stage comes back to where all are in time.
- the size with which a worker does `ENOUGH` of what it does with the largest batch that the target allows. Where the
  target is less than two batches of any size, the first would be nothing.

*The ceiling.* No batch takes longer than the target, so that who comes while it runs can still be in time. A target
that a single item cannot meet is no target: batches are what they would be without. And no batch is more than twice as
large as any that was measured.

*Beyond what is possible.* If more comes than batches of the ceiling can do, the queue grows without end, though larger
batches would do more. This shows where a whole batch of the ceiling is overdue before it begins. Then the target
bounds nothing, until the queue is shorter: batches are as large as they would be without it, but for the deadlines that
a batch of the ceiling would keep.

*Waiting for a batch to fill* ends when one more task would have any late that can still be in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import islice
from typing import NamedTuple

from mosec_asgi.batching.batch_time import BatchTime
from mosec_asgi.batching.loads import Load, Loads
from mosec_asgi.batching.policy import WorkerKey
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.task import SETTLED, Task
from mosec_asgi.observing.statistics import BatchLine

# Of what a worker does with the largest batches that the target allows, how much it does with those of the floor.
ENOUGH = 0.95
# Seconds by which a timer of the event loop may be late.
TIMER_SECONDS = 0.001
# Of a batch's predicted end, in seconds: less is an error of rounding.
ROUNDING = 1e-9


class Bounds(NamedTuple):
    """The amounts of batches at a moment.

    Attributes:
        floor: no batch is smaller for the sake of those that are nearly due, while more than that waits.
        most: no batch is larger.
        lasting: batches of this amount can follow each other within the target.
    """

    floor: float
    most: float
    lasting: float


class Fit(NamedTuple):
    """A batch that may be formed.

    Attributes:
        size: of the tasks, the first so many.
        full: it cannot grow.
    """

    size: int
    full: bool


class Steering:
    """Bounds the batches of a stage.

    Attributes:
        target: seconds that a task should be at the stage.
        times: of its batches.
    """

    __slots__ = ("_bounds", "_by_cost", "_costs", "_for", "_most", "_size", "target", "times")

    def __init__(self, target: float, size: int, rules: Rules) -> None:
        """Begin without knowledge.

        Args:
            target: seconds that a task should be at the stage.
            size: the most tasks in a batch.
            rules: of the stage: whether it counts costs.
        """
        self.times = BatchTime()
        self._costs = bool(rules.max_cost or rules.by_cost)
        self._by_cost = rules.by_cost
        self._most = float(rules.max_cost or math.inf)
        self.configure(target, size)

    def configure(self, target: float, size: int) -> None:
        """Go on with another target and size; what was learned stays."""
        self.target = target
        self._size = size
        # For so many slots, the bounds that were found last; None where they are to be found anew.
        self._for = 0
        self._bounds: Bounds | None = None

    # -- what is learned ---------------------------------------------------------------------------------------------

    def learn(self, tasks: Sequence[Task], count: int, seconds: float) -> None:
        """Note that a batch is done.

        Args:
            tasks: of the batch, those that were answered last.
            count: how many there were in it.
            seconds: that it has taken.
        """
        amount = self.amount(tasks)
        if count > len(tasks):
            amount = amount * count // len(tasks)
        # Workers skip tasks of clients that have left: quick, but not because the work is.
        skipped = any(task.state is SETTLED for task in tasks)
        if not skipped or seconds > self.times.of(amount):
            self.times.add(amount, max(0.0, seconds))
            self._bounds = None

    def amount(self, tasks: Sequence[Task]) -> int:
        """Return what there is in a batch: tasks, or their cost where the stage counts costs."""
        if not self._costs:
            return len(tasks)
        costs = [task.cost for task in tasks]
        return max(1, max(costs) * len(costs) if self._by_cost else sum(costs))

    # -- what follows ------------------------------------------------------------------------------------------------

    def bounds(self, slots: int) -> Bounds:
        """Return the bounds of a batch where so many run at a time."""
        if self._bounds is None or slots != self._for:
            self._for = slots
            self._bounds = self._find_bounds(slots)
        return self._bounds

    @property
    def reached(self) -> bool:
        """Whether a single item can be done within the target, as far as is known."""
        return self.times.within(self.target) >= 1.0 or not self.times.known

    def _find_bounds(self, slots: int) -> Bounds:
        times = self.times
        cap = self._most if self._costs else float(self._size)
        grown = min(cap, times.growth)
        if not times.known or not self.reached:
            return Bounds(grown, grown, grown)
        largest = min(cap, times.within(self.target) * (1.0 + ROUNDING))
        if math.isinf(largest) or not times.of(largest):
            return Bounds(grown, grown, grown)
        lasting = times.within(self.target / (1.0 + 1.0 / slots))
        rate = ENOUGH * largest / (times.fixed + times.per_unit * largest)
        enough = rate * times.fixed / (1.0 - rate * times.per_unit) if times.fixed else 1.0
        most = min(grown, largest)
        return Bounds(min(most, max(1.0, lasting, enough)), most, lasting)

    def size(self, slots: int) -> int:
        """Return how many tasks there are in a batch where more wait than one holds."""
        if self._costs or not self.reached:
            return self._size
        return max(1, min(self._size, int(self.bounds(slots).most)))

    def usual_size(self, slots: int) -> int:
        """Return the size of batches that follow each other where there is always work, for an estimate of the wait."""
        if self._costs or not self.reached or not self.times.known:
            return self._size
        floor, _, lasting = self.bounds(slots)
        return max(1, int(min(self._size, lasting if 2.0 * lasting >= floor else floor)))

    def line(self, slots: int) -> BatchLine | None:
        """Return what is known, for whoever looks on; None while that is nothing."""
        times = self.times
        return BatchLine(times.fixed, times.per_unit, self.bounds(slots).most) if times.known else None

    def due(self, task: Task) -> float:
        """Return when a task is due."""
        return min(task.queued + self.target, task.deadline)

    def fit(self, tasks: Sequence[Task], start: float, slots: int) -> Fit:
        """Return how many of some tasks make a batch.

        Args:
            tasks: the first that wait, in order, at least one and no more than there may be in a batch.
            start: when a worker begins the batch.
            slots: how many batches run at a time.
        """
        bounds, target = self.bounds(slots), self.target
        fit = self._fit(tasks, start, bounds, target)
        if fit.size < len(tasks) and self._is_overdue(tasks, fit.size, start, bounds):
            cap = self._most if self._costs else float(self._size)
            return self._fit(tasks, start, Bounds(bounds.most, min(cap, self.times.growth), bounds.lasting), math.inf)
        return fit

    def _is_overdue(self, tasks: Sequence[Task], size: int, start: float, bounds: Bounds) -> bool:
        """Whether the largest batch that the target allows is late as a whole, however small it was made."""
        if not self.times.known or self.amount(tasks[: size + 1]) <= bounds.most:
            return False
        return all(task.queued + self.target < start for task in tasks[:size])

    def _fit(self, tasks: Sequence[Task], start: float, bounds: Bounds, target: float) -> Fit:
        """Return how many of some tasks make a batch within bounds; see `fit`."""
        times = self.times
        floor, most, _ = bounds
        bounded = times.known and self.reached
        fixed, per_unit = start + times.factor * times.fixed, times.factor * times.per_unit
        late = fixed + per_unit * floor
        limit, amount = math.inf, 0
        for place, (amount, task) in enumerate(zip(self._amounts(tasks), tasks, strict=True)):
            if bounded:
                due = min(task.queued + target, task.deadline) + ROUNDING
                if late <= due < limit:
                    limit = due
            if place and (amount > most or fixed + per_unit * amount > limit):
                return Fit(place, full=True)
        size = len(tasks)
        return Fit(size, size == self._size or amount + 1 > most or fixed + per_unit * (amount + 1) > limit)

    def patience(self, tasks: Sequence[Task], now: float) -> float:
        """Return until when an idle worker may wait for one more task beside some, with none late for that."""
        if not self.times.known:
            return now
        if not self.reached:
            return math.inf
        amount = self.amount(tasks)
        done = now + self.times.of(amount)
        dues = [due for due in map(self.due, tasks) if due >= done]
        return min(dues, default=math.inf) - self.times.of(amount + 1) - TIMER_SECONDS

    def _amounts(self, tasks: Sequence[Task]) -> Sequence[int]:
        """Return for each task the amount of a batch that ends with it."""
        if not self._costs:
            return range(1, len(tasks) + 1)
        amounts: list[int] = []
        total = largest = 0
        for place, task in enumerate(tasks):
            total += task.cost
            largest = max(largest, task.cost)
            amounts.append(max(1, largest * (place + 1) if self._by_cost else total))
        return amounts

    # -- on busy workers ---------------------------------------------------------------------------------------------

    def done_in(self, queued: int, loads: Loads[WorkerKey], now: float) -> float | None:
        """Return in how many seconds a task is done that comes now, by what each worker has and how old that is.

        0 where it starts at once; None where that cannot be told: nothing is known, nothing is bounded, or tasks have
        costs, and what those in the queue cost together is not known.

        Args:
            queued: how many wait.
            loads: of the workers.
            now: the time.
        """
        if self._costs or not self.times.known or not self.reached or not len(loads):
            return None
        free = [when for _, load in loads for when in self._ends(load, loads.concurrency, now)]
        heapify(free)
        size = self.usual_size(len(free))
        seconds = self.times.of(size)
        for _ in range(queued // size):
            heapreplace(free, free[0] + seconds)
        return free[0] - now + seconds if free[0] > now else 0.0

    def _ends(self, load: Load, concurrency: int, now: float) -> list[float]:
        """Return when each slot of a worker is free, by what is predicted."""
        ends = [now] * concurrency
        sent = iter(load.sent.values())
        for place, count in enumerate(load.batches.values()):
            batch = list(islice(sent, count))
            seconds = self.times.of(len(batch))
            if place < concurrency:
                heapreplace(ends, max(now, batch[0].began + seconds))
            else:
                heapreplace(ends, ends[0] + seconds)
        return ends

    def first_to_be_free(self, loads: Loads[WorkerKey], now: float) -> tuple[WorkerKey, float] | None:
        """Return the worker with all that it can run and nothing ahead that will be free first, and when."""
        found = None
        best = (math.inf, 0)
        for worker, load in loads:
            if len(load.batches) == loads.concurrency and not load.alone:
                rank = (now + self._left(load, now), load.order)
                if rank < best:
                    found, best = worker, rank
        return None if found is None else (found, best[0])

    def _left(self, load: Load, now: float) -> float:
        """Return in how many seconds the first of a worker's batches is done."""
        least = math.inf
        tasks = iter(load.sent.values())
        for count in load.batches.values():
            batch = list(islice(tasks, count))
            least = min(least, batch[0].began + self.times.of(self.amount(batch)) - now)
        return max(0.0, least)
