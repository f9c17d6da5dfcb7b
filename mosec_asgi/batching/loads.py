"""What the workers of a stage have to do, and how quick they are. Pure.

A worker is known by a key that its owner chooses. A worker's answers are checked against the tasks that it was sent.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import eq
from typing import Generic, TypeVar

from mosec_asgi.batching.average import MovingAverage
from mosec_asgi.batching.task import DISPATCH, Task

# How many seconds of work a worker is sent ahead, where there is no batching.
WINDOW_SECONDS = 0.0015
MAX_WINDOW = 128
# The weight of the newest measurement of a worker's speed.
SMOOTHING = 0.2

WorkerKey = TypeVar("WorkerKey", bound=Hashable)


class AnswerError(Exception):
    """A worker names tasks that it does not have, or answers its tasks in the wrong order."""


class Load:
    """What one worker has and how quick it is.

    Attributes:
        sent: tasks that it has not answered, by number, in the order in which they were sent.
        batches: for each batch that it has, by the place of its first task, how many answers are missing; unused
            without batching.
        given: tasks that it was ever sent.
        window: tasks that it may have at a time, where there is no batching.
        alone: it runs a task that must be alone.
        order: grows with each use of a worker: of two idle ones, that which was used longer ago comes first.
    """

    __slots__ = ("_pace", "alone", "batches", "given", "order", "sent", "window")

    def __init__(self, order: int, window: int) -> None:
        self.sent: dict[int, Task] = {}
        self.batches: dict[int, int] = {}
        self.given = 0
        self.window = window
        self.alone = False
        self.order = order
        self._pace = MovingAverage(SMOOTHING)

    @property
    def seconds_per_item(self) -> float | None:
        """Its measured seconds for a task, where there is no batching; None while nothing is known."""
        return self._pace.value

    @property
    def work(self) -> float:
        """Seconds of work ahead of it, by its own measured time."""
        return len(self.sent) * (self._pace.value or 0.0)

    def measure(self, seconds_per_item: float) -> None:
        """Note how long it has taken for a task, and adapt its window."""
        pace = self._pace.add(seconds_per_item)
        self.window = max(1, min(MAX_WINDOW, math.ceil(WINDOW_SECONDS / max(pace, 1e-7))))


class Loads(Generic[WorkerKey]):
    """The workers of one stage.

    Attributes:
        in_flight: tasks that workers have and have not answered.
    """

    def __init__(self, *, batched: bool, concurrency: int, ordered: bool) -> None:
        """Begin with no workers.

        Args:
            batched: tasks are sent as batches.
            concurrency: batches, or tasks where there is no batching, that a worker runs at a time.
            ordered: a worker answers in the order in which it was sent its tasks; else in any.
        """
        self.in_flight = 0
        self.concurrency = concurrency
        self._batched = batched
        self._ordered = ordered
        self._loads: dict[WorkerKey, Load] = {}
        # Those of workers that are given no more tasks. Kept apart, so that nobody who looks for a worker sees them.
        self._draining: dict[WorkerKey, Load] = {}
        self._used = 0

    def __len__(self) -> int:
        return len(self._loads)

    def __iter__(self) -> Iterator[tuple[WorkerKey, Load]]:
        return iter(self._loads.items())

    def __getitem__(self, worker: WorkerKey) -> Load:
        try:
            return self._loads[worker]
        except KeyError:
            return self._draining[worker]

    def get(self, worker: WorkerKey) -> Load | None:
        """Return what a worker has to do; None where it is given no more tasks, or is gone."""
        return self._loads.get(worker)

    @property
    def _all(self) -> Iterator[tuple[WorkerKey, Load]]:
        """All that have tasks to answer or may be given some."""
        return chain(self._loads.items(), self._draining.items())

    @property
    def busy(self) -> list[WorkerKey]:
        """The workers that have tasks to answer."""
        return [worker for worker, load in self._all if load.sent]

    @property
    def slots_in_use(self) -> int:
        """Tasks, or batches where there is batching, that workers run at this moment."""
        units = ((load.batches if self._batched else load.sent) for _, load in self._all)
        return sum(min(len(unit), self.concurrency) for unit in units)

    @property
    def units(self) -> int:
        """Batches, or tasks where there is no batching, that stand before others: no draining worker has them."""
        if self._batched:
            return sum(len(load.batches) for load in self._loads.values())
        if self._draining:
            return sum(len(load.sent) for load in self._loads.values())
        return self.in_flight

    def begun_before(self, time: float) -> int:
        """Return how many of the tasks that workers run at this moment were begun before `time`."""
        return sum(task.began < time for load in self._loads.values() for task in self._run_by(load))

    def _run_by(self, load: Load) -> Iterator[Task]:
        """Return the tasks that a worker runs, without those that were sent ahead."""
        batches = islice(load.batches.values(), self.concurrency)
        return islice(load.sent.values(), sum(batches) if self._batched else self.concurrency)

    @property
    def any_room(self) -> bool:
        """Whether any worker could be sent something now, to run it at once or after what it has."""
        if not self._batched:
            return any(len(load.sent) < load.window for load in self._loads.values())
        return any(len(load.batches) <= self.concurrency for load in self._loads.values())

    @property
    def free(self) -> int:
        """The number of workers that can run one more batch at once."""
        return sum(map(self.has_room, self._loads.values()))

    def has_room(self, load: Load) -> bool:
        """Whether a worker can run one more batch at once."""
        return not load.alone and len(load.batches) < self.concurrency

    def holder(self, task: Task) -> WorkerKey | None:
        """Return the worker that has `task`."""
        return next((worker for worker, load in self._all if task.id in load.sent), None)

    def given(self, worker: WorkerKey, ids: Iterable[int]) -> list[Task]:
        """Return the tasks with these numbers, which `worker` has.

        Raises:
            AnswerError: it does not have one of them.
        """
        sent = self[worker].sent
        try:
            return [sent[task_id] for task_id in ids]
        except KeyError as error:
            raise AnswerError(f"named task {error}, which it did not have") from None

    def begun(self, worker: WorkerKey, count: int) -> list[Task]:
        """Return the tasks that `worker` has not answered and has begun: it began `count` of all that it was sent."""
        return [task for task in self[worker].sent.values() if task.place <= count]

    def size_of_ended(self, worker: WorkerKey, first: int) -> int:
        """Return how many tasks there were in a batch that a worker has come to the end of; 0 where it has not.

        Args:
            worker: whose it was.
            first: the place of its first task.
        """
        load = self[worker]
        if first in load.batches:
            return 0
        return min((place for place in load.batches if place > first), default=load.given + 1) - first

    # -- what has happened -------------------------------------------------------------------------------------------

    def add(self, worker: WorkerKey) -> None:
        """Take a worker into use; it has nothing yet."""
        self._used += 1
        self._loads[worker] = Load(self._used, self._first_window)

    @property
    def _first_window(self) -> int:
        """The tasks that a worker of unknown speed may have at a time."""
        # Concurrent workers are sent a quarter more tasks than they run, so that the next task needs no round trip.
        return self.concurrency + self.concurrency // 4

    def run_at_a_time(self, concurrency: int) -> None:
        """Note that workers run so many batches, or tasks, at a time from here on."""
        if concurrency != self.concurrency:
            self.concurrency = concurrency
            for _, load in self._all:
                load.window = self._first_window

    def drain(self, worker: WorkerKey) -> None:
        """Note that a worker is given no more tasks, and has to answer those that it has."""
        self._draining[worker] = self._loads.pop(worker)

    def remove(self, worker: WorkerKey) -> list[Task]:
        """Forget a worker; return the tasks that it had not answered, in the order in which they were sent."""
        load = self._draining.pop(worker, None) or self._loads.pop(worker)
        tasks = list(load.sent.values())
        self.in_flight -= len(tasks)
        return tasks

    def give(self, worker: WorkerKey, tasks: Sequence[Task]) -> None:
        """Note that a worker is sent tasks, as one batch where there is batching; they are marked as sent."""
        load = self._loads[worker]
        self._used += 1
        load.order = self._used
        first = load.given + 1
        sent = load.sent
        for place, task in enumerate(tasks, first):
            task.step(DISPATCH)
            task.place = place
            task.batch = first
            sent[task.id] = task
        load.given += len(tasks)
        if self._batched:
            load.batches[first] = len(tasks)
        self.in_flight += len(tasks)

    def answered(self, worker: WorkerKey, ids: Sequence[int], now: float) -> list[Task]:
        """Note a worker's answers; return the tasks, in the order of `ids`.

        The tasks that it runs next are marked as begun now.

        Raises:
            AnswerError: it has no such task, has answered it already, or has to answer another one before; nothing is
                changed.
        """
        load = self._loads.get(worker) or self._draining[worker]
        sent = load.sent
        count = len(ids)
        if self._ordered:
            # No tuple is made of an iterator here: CPython keeps thousands of each length that it has cut to size, by
            # which a server would grow by 3 MB in its first million answers.
            if len(sent) < count or not all(map(eq, sent, ids)):
                due = f"its next ones were {brief(list(sent))}" if sent else "it had none"
                raise AnswerError(f"answered the tasks {brief(ids)} when {due}")
        elif len(set(ids)) < count or not sent.keys() >= set(ids):
            raise AnswerError(f"answered the tasks {brief(ids)}, and did not have each of them once")
        tasks = [sent.pop(task_id) for task_id in ids]
        self.in_flight -= count
        if not sent:
            load.alone = False
        elif self.concurrency == 1 or not self._batched:
            # The worker runs these next, in the order of sending; for a batch, the time of its first task counts.
            for task in islice(sent.values(), max(0, self.concurrency - count), self.concurrency):
                task.began = now
        if self._batched:
            _count_off(load.batches, tasks)
        return tasks


def _count_off(batches: dict[int, int], tasks: Iterable[Task]) -> None:
    """Count answered tasks off the batches that their worker has."""
    for task in tasks:
        batches[task.batch] -= 1
        if not batches[task.batch]:
            del batches[task.batch]


def brief(ids: Sequence[int]) -> str:
    """Return the first of some tasks' numbers, for an error's text."""
    return ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
