"""The tasks that wait at a stage, in an order of their own: by priority, by tenant, and by key. Pure.

*The order.* Tasks of a higher priority come first, but each priority is worth `ageing` seconds of waiting: a task comes
behind those of a priority higher by n that have come up to n times `ageing` seconds after it, and before all that come
later. So none starves. In each priority the tenants have their turns (`tenants`), whatever they ask for in others, and
the tasks of one tenant stand in order of arrival. Where there are no tenants, all do. Where there are, the task of a
priority that has waited longest says when it is the priority's turn, and the tenants whose task it is: else one who
always has a new task at the front would keep the others of its priority waiting for ever.

*Keys.* Tasks of one key stand in a lane, in the same order. A lane is full if it holds a whole batch. The best task of
each full lane stands in a list as well, so that neither the next task nor the next full lane needs a search through all
keys: each step costs a search in a sorted list. A key is known only while a task of it waits, so there are not more of
them than tasks.

A task that is taken or settled leaves all lists at once. The lists are sorted arrays: to insert and to delete move a
few kilobytes at most for a thousand tasks, which is quicker than a heap in Python, and shows the tasks in order without
a change.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import REQUEUE, Task
from mosec_asgi.batching.tenants import Tenants

# The round of a task, its number, and itself. No two have the same number, so tasks are never compared.
Row = tuple[int, int, Task]
# When a task came, and its number.
Arrival = tuple[float, int]


class Bands:
    """Tasks in order: two sorted lists for each priority, by turn and by arrival."""

    __slots__ = ("_ageing", "_arrivals", "_rows")

    def __init__(self, ageing: float) -> None:
        self._ageing = ageing
        self._rows: dict[int, list[Row]] = {}
        self._arrivals: dict[int, list[Arrival]] = {}

    def __iter__(self) -> Iterator[Task]:
        rows = self._rows
        if len(rows) == 1:
            (only,) = rows.values()
            for row in only:
                yield row[2]
            return
        places = dict.fromkeys(rows, 0)
        oldest = dict.fromkeys(rows, 0)
        given: set[int] = set()
        while places:
            priority = min(places, key=lambda each: self._rank(each, self._arrivals[each][oldest[each]]))
            task = rows[priority][places[priority]][2]
            yield task
            given.add(task.number)
            places[priority] += 1
            if places[priority] == len(rows[priority]):
                del places[priority]
                continue
            arrivals = self._arrivals[priority]
            while arrivals[oldest[priority]][1] in given:
                oldest[priority] += 1

    def _rank(self, priority: int, oldest: Arrival) -> tuple[float, int, int]:
        queued, number = oldest
        return queued - priority * self._ageing, -priority, number

    def first(self) -> Task | None:
        """Return the first task."""
        return next(iter(self), None)

    def add(self, row: Row) -> None:
        """Put a task in its place."""
        task = row[2]
        arrival = (task.queued, task.number)
        rows = self._rows.get(task.priority)
        if rows is None:
            self._rows[task.priority] = [row]
            self._arrivals[task.priority] = [arrival]
            return
        if rows[-1][:2] < row[:2]:
            rows.append(row)
        else:
            insort(rows, row)
        arrivals = self._arrivals[task.priority]
        if arrivals[-1] < arrival:
            arrivals.append(arrival)
        else:
            insort(arrivals, arrival)

    def remove(self, row: Row) -> None:
        """Take a task out."""
        task = row[2]
        rows, arrivals = self._rows[task.priority], self._arrivals[task.priority]
        del rows[bisect_left(rows, row[:2])]
        del arrivals[bisect_left(arrivals, (task.queued, task.number))]
        if not rows:
            del self._rows[task.priority], self._arrivals[task.priority]

    def worst(self) -> int:
        """Return the lowest priority that there is; there must be a task."""
        return min(self._rows)

    def of(self, priority: int) -> list[Row]:
        """Return the rows of a priority, in order."""
        return self._rows[priority]


class Lane:
    """The tasks of one key.

    Attributes:
        key: the key.
        tasks: in order.
        by_cost: in order of cost, where batches are formed so: the cost, the number and the task of each.
        count: how many there are.
        cost: of all of them.
        best: the one that stands in the list of full lanes; None where the lane is not full.
    """

    __slots__ = ("best", "by_cost", "cost", "count", "key", "tasks")

    def __init__(self, key: str, tasks: Bands) -> None:
        self.key = key
        self.tasks = tasks
        self.by_cost: list[tuple[int, int, Task]] = []
        self.count = 0
        self.cost = 0
        self.best: Row | None = None


class Entry(NamedTuple):
    """Where a task stands.

    Attributes:
        task: the task.
        row: in the lists of its lane and of all.
        lane: of its key.
        deadline: in the list of deadlines.
        tenant: the name under which it is counted.
    """

    task: Task
    row: Row
    lane: Lane
    deadline: float
    tenant: str


class OrderedQueue(TaskQueue):
    """The queue of a stage with rules.

    Attributes:
        contested: a task has brought a priority or a tenant: what comes next may come first.
        cost: of all tasks that need not be run alone.
    """

    __slots__ = (
        "_all",
        "_deadlines",
        "_entries",
        "_full",
        "_lanes",
        "_rules",
        "_size",
        "_tenants",
        "contested",
        "cost",
    )

    def __init__(self, rules: Rules, size: int) -> None:
        """Begin empty.

        Args:
            rules: of the order.
            size: the most tasks in a batch.
        """
        super().__init__()
        self._rules = rules
        self._size = size
        self.contested = False
        self.cost = 0
        # For each priority, of which there are few.
        self._tenants: dict[int, Tenants] = {}
        # In order of arrival; all of them; the best of each full lane; by deadline.
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._all = Bands(rules.ageing)
        self._full = Bands(rules.ageing)
        self._deadlines: list[tuple[float, int, Task]] = []
        self._lanes: dict[str, Lane] = {}

    @classmethod
    def of(cls, queue: TaskQueue, rules: Rules, size: int) -> OrderedQueue:
        """Return a queue of the tasks that wait in another."""
        made = cls(rules, size)
        made._numbers = queue._numbers
        made.lone = queue.lone
        made.live = len(queue.lone)
        for task in queue.waiting()[len(queue.lone) :]:
            made._add(task, made._turn(task))
        return made

    @property
    def keys(self) -> int:
        """How many keys there are among the tasks that wait."""
        return len(self._lanes)

    # -- looked at ---------------------------------------------------------------------------------------------------

    def waiting(self) -> list[Task]:
        """Return the live tasks, lone ones first, in order of arrival."""
        return [*self.lone, *(entry.task for entry in self._entries.values())]

    def head(self) -> Task | None:
        """Return the task that waits longest, of those that need not be run alone."""
        entry = next(iter(self._entries.values()), None)
        return None if entry is None else entry.task

    def leader(self) -> Task | None:
        """Return the next task in order, of those that need not be run alone."""
        return self._all.first()

    def first(self, most: int) -> list[Task]:
        """Return up to `most` tasks in order, none of which must be run alone. They stay in the queue."""
        return list(islice(self._all, most))

    def full(self) -> Task | None:
        """Return the next task in order, of those whose lane is full."""
        return self._full.first()

    def is_full(self, task: Task) -> bool:
        """Whether the lane of a task holds a whole batch."""
        return self._entries[task.id].lane.best is not None

    def lane(self, task: Task) -> Lane:
        """Return the lane in which a task stands."""
        return self._entries[task.id].lane

    def earliest_deadline(self) -> float:
        """Return the earliest deadline of those that need not be run alone; infinite where none waits."""
        self.soonest = self._deadlines[0][0] if self._deadlines else math.inf
        return self.soonest

    def most_pressing(self) -> Task:
        """Return the task with that deadline; there must be one."""
        return self._deadlines[0][2]

    def pressing(self, before: float, most: int) -> list[Task]:
        """Return up to `most` tasks whose deadline is before a time: lone ones, then others by deadline."""
        found = [task for task in islice(self.lone, most) if task.deadline < before]
        until = bisect_left(self._deadlines, (before,))
        found += [task for _, _, task in self._deadlines[: min(until, most - len(found))]]
        return found

    def yields_to(self, priority: int, tenant: str, cost: int) -> Task | None:
        """Return the task that gives its place to one that comes and would be refused; None where none does.

        It is of the lowest priority there is, and there the one whose turn comes last: the last of the tenant that has
        asked for most in relation to its weight.

        Args:
            priority: of the one that comes.
            tenant: whose it is.
            cost: of it.
        """
        if not self._entries:
            return None
        turn, _, last = self._all.of(self._all.worst())[-1]
        if last.priority == priority:
            tenants = self._tenants[priority]
            ours, theirs = tenants.name(tenant), self._entries[last.id].tenant
            gives = ours != theirs and tenants.turn(ours, self._cost(cost)) < turn
        else:
            gives = last.priority < priority
        return last if gives else None

    # -- changed -----------------------------------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        """Have batches of another size from here on; all that waits keeps its place."""
        self._size = size
        for lane in self._lanes.values():
            self._list(lane)

    def append(self, task: Task) -> None:
        """Put a task that has arrived in its place."""
        self._numbers += 1
        task.number = self._numbers
        self._add(task, self._turn(task))

    def requeue(self, tasks: Iterable[Task]) -> None:
        """Put tasks that a dead worker had back into their places; those with attempts must be run alone."""
        again = False
        for task in tasks:
            task.step(REQUEUE)
            task.alone = task.attempts > 0
            if task.alone:
                self.lone.append(task)
                self.live += 1
            else:
                tenants = self._tenants_of(task)
                name = tenants.name(task.tenant)
                self._add(task, (name, tenants.returned(name)))
                again = True
        self.lone = type(self.lone)(sorted(self.lone, key=_arrival))
        if again:
            self._entries = OrderedDict(sorted(self._entries.items(), key=lambda item: _arrival(item[1].task)))

    def discard(self, task: Task) -> None:
        """Note that `task`, which waits here, is being settled; to be called once, before it is."""
        if task.alone:
            self.live -= 1
            self.lone.remove(task)
        else:
            entry = self._remove(task)
            self._tenants[task.priority].left(entry.tenant, self._cost(task.cost), entry.row[0])

    def take(self, tasks: Sequence[Task]) -> None:
        """Take live tasks out, wherever they stand."""
        for task in tasks:
            if task.alone:
                self.live -= 1
                self.lone.remove(task)
            else:
                first, _, _ = self._all.of(task.priority)[0]
                entry = self._remove(task)
                self._tenants[task.priority].served(entry.tenant, self._cost(task.cost), entry.row[0], first)

    def _cost(self, cost: int) -> int:
        """Return what a task costs its tenant: as much as any other where costs are not counted, and never nothing."""
        return max(1, cost) if self._rules.max_cost or self._rules.by_cost else 1

    def _turn(self, task: Task) -> tuple[str, int]:
        """Count a task; return its tenant's name and the round of its turn."""
        tenants = self._tenants_of(task)
        name = tenants.name(task.tenant)
        return name, tenants.came(name, self._cost(task.cost))

    def _tenants_of(self, task: Task) -> Tenants:
        """Return the tenants of a task's priority."""
        tenants = self._tenants.get(task.priority)
        if tenants is None:
            tenants = self._tenants[task.priority] = Tenants(self._rules.weights)
        return tenants

    def _add(self, task: Task, turn: tuple[str, int]) -> None:
        name, number = turn
        if task.priority or task.tenant:
            self.contested = True
        row = (number, task.number, task)
        key = task.key if self._rules.keyed else ""
        lane = self._lanes.get(key)
        if lane is None:
            # Without keys there is one lane, which holds all.
            lane = self._lanes[key] = Lane(key, Bands(self._rules.ageing) if self._rules.keyed else self._all)
        self._entries[task.id] = Entry(task, row, lane, task.deadline, name)
        self.live += 1
        self._all.add(row)
        if self._rules.keyed:
            lane.tasks.add(row)
        if self._rules.by_cost:
            insort(lane.by_cost, (task.cost, task.number, task))
        lane.count += 1
        lane.cost += task.cost
        self.cost += task.cost
        insort(self._deadlines, (task.deadline, task.number, task))
        self.soonest = self._deadlines[0][0]
        self._list(lane)

    def _remove(self, task: Task) -> Entry:
        entry = self._entries.pop(task.id)
        _, row, lane, deadline, _ = entry
        self.live -= 1
        self._all.remove(row)
        if self._rules.keyed:
            lane.tasks.remove(row)
        if self._rules.by_cost:
            del lane.by_cost[bisect_left(lane.by_cost, (task.cost, task.number))]
        lane.count -= 1
        lane.cost -= task.cost
        self.cost -= task.cost
        del self._deadlines[bisect_left(self._deadlines, (deadline, task.number))]
        self._list(lane)
        if not lane.count:
            del self._lanes[lane.key]
        return entry

    def _list(self, lane: Lane) -> None:
        """Have a lane's best task in the list of full lanes where it is full, and only there."""
        full = lane.count >= self._size or lane.cost >= (self._rules.max_cost or math.inf)
        best = lane.tasks.first() if full else None
        row = None if best is None else self._entries[best.id].row
        if row is not lane.best:
            if lane.best is not None:
                self._full.remove(lane.best)
            if row is not None:
                self._full.add(row)
            lane.best = row


def _arrival(task: Task) -> tuple[float, int]:
    return task.queued, task.number
