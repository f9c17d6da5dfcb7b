"""Virtual time: a pattern and a policy in, what clients and workers saw out.

What is not policy is the same for all, so that only the decisions are compared: a batch takes `HOP` seconds to its
worker and its answers as long to come back, a worker runs its batches in order, and no decision takes time. All that
happens at one time is told first, and then the policy decides once.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from policies.patterns import Closed, Open, Pattern

# Seconds that a frame takes from the server to a worker, or back.
HOP = 0.00005
# Of the tasks, how many are there to warm up, and are not measured.
WARM_UP = 0.2


class Job:
    """A task as all policies see it.

    Attributes:
        number: its place in the order of arrival, from 0.
        arrived: when it came.
        cost: the factor on the time that it takes by itself.
        route: 0, or that of others who ask beside the clients of the pattern.
        answered: when it was answered.
    """

    __slots__ = ("answered", "arrived", "cost", "number", "route")

    def __init__(self, number: int, arrived: float, cost: float, route: int = 0) -> None:
        self.number = number
        self.arrived = arrived
        self.cost = cost
        self.route = route
        self.answered = 0.0


Orders = list[tuple[int, list[Job]]]


class Policy(Protocol):
    """Decides which jobs go to which worker, and when. Workers have the numbers from 0."""

    def arrived(self, job: Job, now: float) -> None:
        """Take in a job."""

    def answered(self, worker: int, jobs: Sequence[Job], seconds: float, now: float) -> None:
        """Hear that a worker has answered a batch, on which it was at work for so many seconds."""

    def decide(self, now: float) -> tuple[Orders, float | None]:
        """Return the batches to send, and when to ask again if nothing happens before."""

    def timer(self, when: float, now: float) -> float:
        """Return the time at which a timer fires that is set now for `when`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a policy came to.

    Attributes:
        per_second: tasks that workers did in a second.
        p50: the median time from a task's arrival to its answer, in seconds.
        p99: the 99th percentile of the same.
        batch: the mean size of a batch.
    """

    per_second: float
    p50: float
    p99: float
    batch: float


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the medians of several runs."""
    return Outcome(
        median(one.per_second for one in outcomes),
        median(one.p50 for one in outcomes),
        median(one.p99 for one in outcomes),
        median(one.batch for one in outcomes),
    )


class Run:
    """One pattern under one policy."""

    def __init__(self, pattern: Pattern, policy: Policy) -> None:
        """Draw the arrivals; nothing happens yet."""
        self.pattern = pattern
        self.policy = policy
        self.jobs: list[Job] = []
        self.batches: list[tuple[float, float, int]] = []
        self._rng = pattern.rng
        # Apart, since policies form different batches and the arrivals are to stay the same.
        self._batch_rng = pattern.rng
        self._free_at = [0.0] * pattern.workers
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = itertools.count()
        self._now = 0.0
        self._answered: list[Job] = []
        self._wake_at: float | None = None
        self._costs = [pattern.service.draw(self._rng) for _ in range(pattern.tasks)]
        self._begin(pattern.arrivals)

    def play(self) -> Outcome:
        """Let time pass until all tasks are answered."""
        events = self._events
        wanted = self.pattern.tasks
        while len(self._answered) < wanted:
            now = self._now = events[0][0]
            while events and events[0][0] == now:
                _, _, happen, arguments = heapq.heappop(events)
                happen(*arguments)
            self._decide(now)
        return self._outcome()

    # -- what happens ------------------------------------------------------------------------------------------------

    def _begin(self, arrivals: Open | Closed) -> None:
        pattern = self.pattern
        if isinstance(arrivals, Closed):
            for _ in range(arrivals.clients):
                self._at(arrivals.pause(self._rng), self._arrive)
            return
        period = 20 * pattern.service.mean(pattern.batch)
        for when in arrivals.times(self._rng, pattern.tasks, pattern.capacity, pattern.batch, period):
            self._at(when, self._arrive)

    def _at(self, when: float, happen: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), happen, arguments))

    def _arrive(self, route: int = 0) -> None:
        if len(self.jobs) < self.pattern.tasks:
            job = Job(len(self.jobs), self._now, self._costs[len(self.jobs)], route)
            self.jobs.append(job)
            self.policy.arrived(job, self._now)

    def _answer(self, worker: int, batch: list[Job], seconds: float) -> None:
        now = self._now
        self.policy.answered(worker, batch, seconds, now)
        self._answered += batch
        arrivals = self.pattern.arrivals
        for job in batch:
            job.answered = now
            if isinstance(arrivals, Closed) and job.route == 0:
                self._at(now + arrivals.pause(self._rng), self._arrive)

    def _wake(self, wake_at: float) -> None:
        # One that was set anew is another one; this one fires for nothing.
        if self._wake_at == wake_at:
            self._wake_at = None

    def _decide(self, now: float) -> None:
        orders, wake_at = self.policy.decide(now)
        for worker, batch in orders:
            self._send(worker, batch, now)
        if wake_at != self._wake_at:
            self._wake_at = wake_at
            if wake_at is not None:
                self._at(self.policy.timer(wake_at, now), self._wake, wake_at)

    def _send(self, worker: int, batch: list[Job], now: float) -> None:
        service = self.pattern.service
        costs = sum(job.cost for job in batch)
        seconds = service.fixed * service.draw(self._batch_rng) + service.per_item * costs
        start = max(now + HOP, self._free_at[worker])
        self._free_at[worker] = end = start + seconds
        self.batches.append((start, end, len(batch)))
        self._at(end + HOP, self._answer, worker, batch, seconds)

    # -- what it came to ---------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        first = int(WARM_UP * self.pattern.tasks)
        if isinstance(self.pattern.arrivals, Open):
            begin, end = self.jobs[first].arrived, self.jobs[-1].arrived
        else:
            begin, end = self._answered[first].answered, self._answered[-1].answered
        latencies = sorted(job.answered - job.arrived for job in self.jobs[first:] if job.answered)
        return Outcome(
            per_second=self._done(begin, end) / (end - begin),
            p50=latencies[len(latencies) // 2],
            p99=latencies[int(0.99 * len(latencies))],
            batch=sum(size for _, _, size in self.batches) / len(self.batches),
        )

    def _done(self, begin: float, end: float) -> float:
        """Return the tasks done between two times; of a batch at the edge, the part that lies within."""
        return sum(
            size * (min(end, stop) - max(begin, start)) / (stop - start)
            for start, stop, size in self.batches
            if stop > begin and start < end
        )
