"""The tasks that wait at a stage, in order of arrival. Pure.

A task that is settled while it waits stays in the queue, and is skipped when the queue is next read: to remove it from
the middle would need a search. `discard` keeps the number of live tasks, and the queue compacts itself when more than
half of it is settled. Tasks that must be run alone stand in a queue of their own, before all others; none is settled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, islice

from mosec_asgi.batching.task import QUEUED, REQUEUE, Task


class TaskQueue:
    """The queue of one stage.

    Attributes:
        live: tasks that wait, those that must be run alone among them.
        lone: those that must be run alone, in order of arrival.
        soonest: no other has an earlier deadline; kept, so that nobody who only has to know that looks at all of them.
    """

    __slots__ = ("_has_lost", "_numbers", "_tasks", "live", "lone", "soonest")

    def __init__(self) -> None:
        self.soonest = math.inf
        # Tasks have been taken or settled since `soonest` was found: there may be none that it belongs to.
        self._has_lost = False
        self.live = 0
        self.lone: deque[Task] = deque()
        self._tasks: deque[Task] = deque()
        self._numbers = 0

    def __len__(self) -> int:
        return self.live

    @property
    def others(self) -> int:
        """Live tasks that need not be run alone."""
        return self.live - len(self.lone)

    def waiting(self) -> list[Task]:
        """Return the live tasks, in order."""
        return [*self.lone, *(task for task in self._tasks if task.state is QUEUED)]

    def head(self) -> Task | None:
        """Return the first live task that need not be run alone."""
        tasks = self._tasks
        while tasks and tasks[0].state is not QUEUED:
            tasks.popleft()
        return tasks[0] if tasks else None

    def first(self, most: int) -> list[Task]:
        """Return up to `most` live tasks from the head, none of which must be run alone. They stay in the queue."""
        if len(self._tasks) == self.others:
            # None is settled, as is usual.
            return list(islice(self._tasks, most))
        found: list[Task] = []
        for task in self._tasks:
            if task.state is QUEUED:
                found.append(task)
                if len(found) == most:
                    break
        return found

    def pressing(self, before: float, most: int) -> list[Task]:
        """Return those of the first `most` tasks, lone ones first, whose deadline is before a time, in order."""
        tasks = chain(self.lone, self._tasks) if self.lone else self._tasks
        return [task for task in islice(tasks, most) if task.deadline < before and task.state is QUEUED]

    def earliest_deadline(self) -> float:
        """Return the earliest deadline of those that need not be run alone; infinite where none waits."""
        if self._has_lost:
            self._has_lost = False
            self.soonest = min((task.deadline for task in self._tasks if task.state is QUEUED), default=math.inf)
        return self.soonest

    def append(self, task: Task) -> None:
        """Put a task that has arrived at the end."""
        self._numbers += 1
        task.number = self._numbers
        self._tasks.append(task)
        if task.deadline < self.soonest:
            self.soonest = task.deadline
        self.live += 1

    def requeue(self, tasks: Iterable[Task]) -> None:
        """Put tasks that a dead worker had back into their places; those with attempts must be run alone."""
        for task in tasks:
            task.step(REQUEUE)
            task.alone = task.attempts > 0
            (self.lone if task.alone else self._tasks).append(task)
            self.live += 1
        # If several workers have died, the last to be noticed may have had the younger tasks.
        self.lone = deque(sorted(self.lone, key=_arrival))
        self._tasks = deque(sorted(self._tasks, key=_arrival))
        self._has_lost, self.soonest = True, -math.inf

    def discard(self, task: Task) -> None:
        """Note that `task`, which waits here, is being settled; to be called once, before it is."""
        self.live -= 1
        self._has_lost = True
        if task.alone:
            self.lone.remove(task)
        if len(self._tasks) > 2 * self.live + 64:
            self._tasks = deque(t for t in self._tasks if t.state is QUEUED)

    def take(self, tasks: Sequence[Task]) -> None:
        """Take live tasks out, wherever they stand."""
        waiting = self._tasks
        self.live -= len(tasks)
        self._has_lost = True
        for place, task in enumerate(tasks):
            while waiting and waiting[0] is not task and waiting[0].state is not QUEUED:
                waiting.popleft()
            if waiting and waiting[0] is task:
                waiting.popleft()
            else:
                # The usual policies take the first tasks; this policy has taken tasks from further back.
                self._take_apart(tasks[place:])
                return

    def _take_apart(self, tasks: Sequence[Task]) -> None:
        taken = set(map(id, tasks))
        self._tasks = deque(task for task in self._tasks if id(task) not in taken)
        if any(task.alone for task in tasks):
            self.lone = deque(task for task in self.lone if id(task) not in taken)


def _arrival(task: Task) -> tuple[float, int]:
    return task.queued, task.number
