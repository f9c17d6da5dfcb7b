"""Which tasks of a stage go to which worker, and when. Pure: time comes in as `now`, decisions come out as data.

One `Scheduler` for a stage holds its queue and what is known of its workers. The coordinator tells it what has
happened (`enqueue`, `answered`, `add_worker`, ...) and asks `assign(now)` what to do: a list of assignments to send,
and the time at which to ask again if nothing happens before.

Theory of operation
-------------------
Tasks start in order of arrival. One central queue: a worker is chosen when the task leaves it, not when it comes.

*Without batching* (`max_batch_size` 1) a worker is sent several tasks ahead, a **window**: as many as it begins in
`WINDOW_SECONDS` by its own measured time. Then the pipe is never empty between two quick tasks and one write serves
many, while a slow model has a window of one and no task waits behind another as long as some worker is free. Among
workers with room, the one with the least measured work ahead gets the task.

*With batching* one central former fills batches, so a burst of `max_batch_size` tasks is one batch and not one bit
for every idle worker. A batch leaves when it is full, or when its oldest task has waited `max_wait`, counted from
that task's arrival at the stage. A busy worker is sent one batch ahead (**prefetch**), but only if that batch is
already full: a part of a batch can still grow while it waits here, and cannot once it has been sent.

*Concurrent workers* (`concurrency` above 1: an event loop, or the slots of a continuous batch) run several tasks, or
several batches, at a time. They answer in any order, and are sent a quarter more tasks than they run, so that one that
is done is followed by the next without a round trip.

*Waiting must pay.* Where `max_wait` was not set for the stage, an idle worker waits only where a whole batch comes in a
part of a batch's time, or for tasks that are likely to come back at once, and never longer than a batch takes
(`arrivals`).

*After a crash* a task comes back to its place in the queue. One that the dead worker had begun is run alone, before all
others, on a worker that has nothing else, so that if it is the one that kills workers, it kills alone. A stream has
shown that it does not with its first event, and others may join it then. Until some worker has nothing, the others
wait behind it; not so where workers are concurrent and may have something for long: the one that takes the dead one's
place has nothing.

A task that is settled while it waits is dropped when the queue is next read past it; `discard` keeps the count of
live ones true, and the queue compacts itself when more than half of it is dead.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from mosec_asgi.batching.arrivals import SMOOTHING, Arrivals
from mosec_asgi.batching.task import Event, State, Task

WINDOW_SECONDS = 0.0015
MAX_WINDOW = 128

WorkerKey = TypeVar("WorkerKey", bound=Hashable)


class AnswerError(Exception):
    """A worker speaks of tasks that it does not have, or not in the order in which it was sent them."""


@dataclass(slots=True)
class Assignment(Generic[WorkerKey]):
    """A decision: send these tasks to this worker, as one frame.

    Attributes:
        worker: the key that `add_worker` was given.
        tasks: in order; already marked as sent.
    """

    worker: WorkerKey
    tasks: list[Task]


class _Load:
    """What one worker has and how quick it is."""

    __slots__ = ("alone", "batches", "given", "order", "seconds_per_item", "sent", "window")

    def __init__(self, order: int, window: int) -> None:
        # Tasks that it has not answered, by number, in the order in which they were sent.
        self.sent: dict[int, Task] = {}
        # For each batch that it has, by the place of its first task, how many answers are missing; unused without
        # batching.
        self.batches: dict[int, int] = {}
        # Tasks that it was ever sent.
        self.given = 0
        self.seconds_per_item: float | None = None
        self.window = window
        # It runs a task that must be alone.
        self.alone = False
        # Breaks ties between idle workers in favour of the one that was used longest ago.
        self.order = order

    @property
    def work(self) -> float:
        """Seconds of work ahead of it, by its own measured time."""
        return len(self.sent) * (self.seconds_per_item or 0.0)


class Scheduler(Generic[WorkerKey]):
    """The queue of one stage, and the loads of its workers."""

    def __init__(
        self,
        max_batch_size: int,
        max_wait: float,
        *,
        adaptive: bool = False,
        concurrency: int = 1,
        ordered: bool = True,
    ) -> None:
        """Begin with an empty queue and no workers.

        Args:
            max_batch_size: the most tasks in a batch; 1 turns batching off.
            max_wait: seconds that a task may wait for its batch to fill.
            adaptive: let an idle worker start before `max_wait` where waiting does not pay.
            concurrency: batches, or tasks where there is no batching, that a worker runs at a time.
            ordered: a worker answers in the order in which it was sent its tasks; else in any.
        """
        self.max_batch_size = max_batch_size
        self.max_wait = max_wait
        self.adaptive = adaptive and max_batch_size > 1
        self.concurrency = concurrency
        self.ordered = ordered
        self._queue: deque[Task] = deque()
        # Those that must be run alone, which go before all others; none of them is settled.
        self._lone: deque[Task] = deque()
        self._live = 0
        self._in_flight = 0
        self._loads: dict[WorkerKey, _Load] = {}
        self._used = 0
        self._arrivals = Arrivals()

    def __repr__(self) -> str:
        return f"<Scheduler queued={self._live} sent={self.in_flight} workers={len(self._loads)}>"

    @property
    def queued(self) -> int:
        """Live tasks that wait."""
        return self._live

    @property
    def in_flight(self) -> int:
        """Tasks that workers have and have not answered."""
        return self._in_flight

    @property
    def slots_in_use(self) -> int:
        """Tasks, or batches where there is batching, that workers run at this moment."""
        units = ((load.batches if self.max_batch_size > 1 else load.sent) for load in self._loads.values())
        return sum(min(len(unit), self.concurrency) for unit in units)

    @property
    def starts_at_once(self) -> bool:
        """Whether a single waiting task has nothing to wait for: no batch to fill, and workers with nothing to do."""
        return self._live == 1 and self._in_flight == 0 and self.max_batch_size == 1

    def waiting(self) -> Iterable[Task]:
        """Return the live tasks that wait, in order."""
        return [*self._lone, *(task for task in self._queue if task.state is State.QUEUED)]

    @property
    def busy(self) -> list[WorkerKey]:
        """The workers that have tasks to answer."""
        return [worker for worker, load in self._loads.items() if load.sent]

    def given(self, worker: WorkerKey, ids: Iterable[int]) -> list[Task]:
        """Return the tasks with these numbers, which `worker` has.

        Raises:
            AnswerError: it does not have one of them.
        """
        sent = self._loads[worker].sent
        try:
            return [sent[task_id] for task_id in ids]
        except KeyError as error:
            raise AnswerError(f"spoke of task {error}, which it did not have") from None

    def begun(self, worker: WorkerKey, count: int) -> list[Task]:
        """Return the tasks that `worker` has not answered and has begun: it began `count` of all that it was sent."""
        return [task for task in self._loads[worker].sent.values() if task.place <= count]

    def seconds_per_item(self, worker: WorkerKey) -> float | None:
        """Return how long `worker` takes for a task without batching; None while that is not known, or it is gone."""
        load = self._loads.get(worker)
        return None if load is None else load.seconds_per_item

    def holder(self, task: Task) -> WorkerKey | None:
        """Return the worker that has `task`."""
        return next((worker for worker, load in self._loads.items() if task.id in load.sent), None)

    # -- what has happened -------------------------------------------------------------------------------------------

    def add_worker(self, worker: WorkerKey) -> None:
        """Take a worker into use; it has nothing yet."""
        self._used += 1
        self._loads[worker] = _Load(self._used, self.concurrency + self.concurrency // 4)

    def remove_worker(self, worker: WorkerKey) -> list[Task]:
        """Forget a worker; return the tasks that it had not answered, in the order in which they were sent."""
        tasks = list(self._loads.pop(worker).sent.values())
        self._in_flight -= len(tasks)
        return tasks

    def enqueue(self, task: Task, now: float) -> None:
        """Put a task that has arrived at this stage at the end of the queue."""
        self._queue.append(task)
        self._live += 1
        if self.adaptive:
            self._arrivals.arrived(now, self._live + self._in_flight)

    def requeue(self, tasks: Iterable[Task]) -> None:
        """Take tasks that a dead worker had back into the queue, in order of arrival; those with attempts, alone."""
        for task in tasks:
            task.step(Event.REQUEUE)
            task.alone = task.attempts > 0
            (self._lone if task.alone else self._queue).append(task)
            self._live += 1
        # Several workers may have died, the one with the younger tasks last.
        self._lone = deque(sorted(self._lone, key=_arrival))
        self._queue = deque(sorted(self._queue, key=_arrival))

    def proven(self, worker: WorkerKey) -> None:
        """Note that the task which `worker` runs alone has been seen to work, so that others may join it."""
        self._loads[worker].alone = False

    def discard(self, task: Task) -> None:
        """Note that `task`, which waits here, is being settled; to be called once, before it is."""
        self._live -= 1
        if task.alone:
            self._lone.remove(task)
        if len(self._queue) > 2 * self._live + 64:
            self._queue = deque(t for t in self._queue if t.state is State.QUEUED)

    def answered(self, worker: WorkerKey, ids: Sequence[int], seconds: float, now: float) -> list[Task]:
        """Note a worker's answers.

        Args:
            worker: who answers.
            ids: the numbers of the tasks.
            seconds: the time that it was at work on them.
            now: the time.

        Returns:
            the tasks, in the order of `ids`.

        Raises:
            AnswerError: it has no such task, has answered it already, or has to answer another one before; nothing is
                changed.
        """
        load = self._loads[worker]
        sent = load.sent
        count = len(ids)
        if self.ordered:
            if tuple(islice(sent, count)) != tuple(ids):
                raise AnswerError(f"answered the tasks {_brief(ids)} when its next ones were {_brief(list(sent))}")
        elif len(set(ids)) < count or not sent.keys() >= set(ids):
            raise AnswerError(f"answered the tasks {_brief(ids)}, and did not have each of them once")
        tasks = [sent.pop(task_id) for task_id in ids]
        self._in_flight -= count
        if not sent:
            load.alone = False
        if self.max_batch_size > 1:
            if self.adaptive and tasks:
                idle = any(map(self._has_room, self._loads.values()))
                self._arrivals.answered(now, self._live + self._in_flight + count, seconds, idle=idle)
            self._count_off(load, tasks)
        elif tasks and self.concurrency == 1:
            self._measure(load, seconds / count)
        return tasks

    # -- what to do --------------------------------------------------------------------------------------------------

    def assign(self, now: float) -> tuple[list[Assignment[WorkerKey]], float | None]:
        """Decide which tasks go to which worker now.

        Args:
            now: the time, in the seconds in which tasks carry theirs.

        Returns:
            the assignments, whose tasks are marked as sent, and the time at which to ask again even if nothing happens
            until then, or None.
        """
        if not self._live or not self._loads:
            return [], None
        alone = self._assign_lone() if self._lone else []
        if self._lone and self.concurrency == 1:
            # What workers have is soon done, and then one of them has nothing: order is kept.
            return alone, None
        if self.max_batch_size == 1:
            return alone + self._assign_window(), None
        batches, ask_at = self._assign_batches(now)
        return alone + batches, ask_at

    def _assign_lone(self) -> list[Assignment[WorkerKey]]:
        """Give each worker that has nothing one of the tasks that must be alone."""
        assignments: list[Assignment[WorkerKey]] = []
        empty = sorted((load.order, worker) for worker, load in self._loads.items() if not load.sent)
        for (_, worker), task in zip(empty, list(self._lone), strict=False):
            self._lone.popleft()
            self._give(worker, [task])
            self._loads[worker].alone = True
            assignments.append(Assignment(worker, [task]))
        return assignments

    def _assign_window(self) -> list[Assignment[WorkerKey]]:
        given: dict[WorkerKey, list[Task]] = {}
        while self._head() is not None:
            worker, count = self._least_loaded_with_room()
            if worker is None:
                break
            tasks = self._next_tasks(count)
            self._take(worker, tasks)
            given.setdefault(worker, []).extend(tasks)
        return [Assignment(worker, tasks) for worker, tasks in given.items()]

    def _least_loaded_with_room(self) -> tuple[WorkerKey | None, int]:
        """Return the worker that the next task is for, and how many go there before another may have its turn."""
        best: WorkerKey | None = None
        best_rank = (0.0, 0, 0)
        count = 0
        for worker, load in self._loads.items():
            room = load.window - len(load.sent)
            if load.alone or room < 1:
                continue
            count = room if best is None else 1
            rank = (load.work, len(load.sent), load.order)
            if best is None or rank < best_rank:
                best, best_rank = worker, rank
        return best, count

    def _assign_batches(self, now: float) -> tuple[list[Assignment[WorkerKey]], float | None]:
        assignments: list[Assignment[WorkerKey]] = []
        while (oldest := self._head()) is not None:
            full = self._live - len(self._lone) >= self.max_batch_size
            worker = self._idle_worker()
            if worker is None:
                # Only a full batch goes ahead to a busy worker.
                worker = self._prefetching_worker() if full else None
                if worker is None:
                    break
            elif not full and now < (until := self._wait_until(oldest, now)):
                return assignments, until
            batch = self._next_tasks(self.max_batch_size)
            self._take(worker, batch)
            assignments.append(Assignment(worker, batch))
        return assignments, None

    def _idle_worker(self) -> WorkerKey | None:
        """Return the worker that runs the fewest batches and has room to run one more at once."""
        idle = [
            ((len(load.batches), load.order), worker) for worker, load in self._loads.items() if self._has_room(load)
        ]
        return min(idle, key=lambda pair: pair[0])[1] if idle else None

    def _has_room(self, load: _Load) -> bool:
        """Whether a worker can run one more batch at once."""
        return not load.alone and len(load.batches) < self.concurrency

    def _prefetching_worker(self) -> WorkerKey | None:
        """Return the worker with all that it can run and nothing ahead that will be free first."""
        ready = [
            ((len(load.sent), load.order), worker)
            for worker, load in self._loads.items()
            if len(load.batches) == self.concurrency and not load.alone
        ]
        return min(ready, key=lambda pair: pair[0])[1] if ready else None

    def _next_tasks(self, most: int) -> list[Task]:
        """Return live tasks from the head of the queue, which stay there until they are taken."""
        tasks: list[Task] = []
        for task in self._queue:
            if task.state is State.QUEUED:
                tasks.append(task)
                if len(tasks) == most:
                    break
        return tasks

    def _wait_until(self, oldest: Task, now: float) -> float:
        """Return until when an idle worker waits for the batch that begins with `oldest` to fill."""
        most = oldest.queued + self.max_wait
        if not self.adaptive:
            return most
        if self._arrivals.will_fill(self.max_batch_size, now):
            return min(most, oldest.queued + self._arrivals.batch_seconds)
        free = sum(map(self._has_room, self._loads.values()))
        return self._arrivals.linger_until(self._live, self._in_flight, free, self.max_wait)

    # -- book-keeping ------------------------------------------------------------------------------------------------

    def _head(self) -> Task | None:
        """Return the first live task, and drop the settled ones before it."""
        queue = self._queue
        while queue and queue[0].state is not State.QUEUED:
            queue.popleft()
        return queue[0] if queue else None

    def _take(self, worker: WorkerKey, tasks: list[Task]) -> None:
        """Move tasks from the head of the queue to a worker."""
        for task in tasks:
            while self._queue.popleft() is not task:
                pass
        self._give(worker, tasks)

    def _give(self, worker: WorkerKey, tasks: list[Task]) -> None:
        """Note that a worker has tasks, as one batch where there is batching."""
        load = self._loads[worker]
        self._used += 1
        load.order = self._used
        first = load.given + 1
        for task in tasks:
            task.step(Event.DISPATCH)
            load.given += 1
            task.place, task.batch = load.given, first
            load.sent[task.id] = task
        if self.max_batch_size > 1:
            load.batches[first] = len(tasks)
        self._live -= len(tasks)
        self._in_flight += len(tasks)

    def _measure(self, load: _Load, seconds_per_item: float) -> None:
        before = load.seconds_per_item
        load.seconds_per_item = seconds_per_item if before is None else before + SMOOTHING * (seconds_per_item - before)
        quick = WINDOW_SECONDS / max(load.seconds_per_item, 1e-7)
        load.window = max(1, min(MAX_WINDOW, math.ceil(quick)))

    @staticmethod
    def _count_off(load: _Load, tasks: Iterable[Task]) -> None:
        """Count answered tasks off the batches that their worker has."""
        batches = load.batches
        for task in tasks:
            batches[task.batch] -= 1
            if not batches[task.batch]:
                del batches[task.batch]


def _arrival(task: Task) -> tuple[float, int]:
    return task.queued, task.id


def _brief(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
