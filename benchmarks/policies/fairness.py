"""Two routes share a stage: what a flood on one of them costs the other.

One route has few requests that come at random, the other one clients that ask again as soon as they are answered. Tasks
start in order of arrival, so a request waits for what was there before it and for nothing that came after it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import median

from policies.ours import Ours
from policies.patterns import Closed, Pattern, Service
from policies.simulation import HOP, Job, Policy, Run

QUIET, FLOOD = 1, 0
SERVICE = Service("model 5 ms + 0.1", 0.005, 0.0001)
BATCH = 64
QUIET_PER_SECOND = 50.0
CLIENTS = (1, 16, 64, 256, 1000)
TASKS = 40_000
# By which a timer may fire late.
WHOLE_MILLISECOND = 0.001
# Among how many later jobs an overtaking is looked for: more than are at the stage at any time.
NEAR = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """What requests of the quiet route met beside so many clients of the other one. Times are in milliseconds.

    Attributes:
        clients: of the flooding route.
        quiet_p50: median latency of the quiet route.
        quiet_p99: the 99th percentile.
        flood_p50: the same of the other route.
        flood_p99: the same.
        ahead: the median number of tasks that were at the stage when one came.
        late: how many took longer than the batches that were ahead of them, theirs, and one that was on the worker.
        overtaken: tasks that came after one of them and started before it.
    """

    clients: int
    quiet_p50: float
    quiet_p99: float
    flood_p50: float
    flood_p99: float
    ahead: float
    late: int
    overtaken: int


class TwoRoutes(Run):
    """A run in which the clients of the pattern are the flood, and others ask on another route.

    Attributes:
        ahead: how many tasks were at the stage when each job came.
        sent: the place of the batch in which each job was sent, among all.
    """

    def __init__(self, pattern: Pattern, policy: Policy) -> None:
        """Draw the arrivals."""
        super().__init__(pattern, policy)
        self.ahead: list[int] = []
        self.sent: dict[Job, int] = {}
        rng, now = random.Random(pattern.seed), 0.0
        for _ in range(pattern.tasks):
            now += rng.expovariate(QUIET_PER_SECOND)
            self._at(now, self._arrive, QUIET)

    @property
    def quiet(self) -> list[Job]:
        """The jobs of the quiet route."""
        return [job for job in self.jobs if job.route == QUIET]

    def latencies(self, route: int) -> list[float]:
        """Return the latencies of a route in milliseconds, in order."""
        return sorted((job.answered - job.arrived) * 1000 for job in self.jobs if job.route == route)

    def late(self, job: Job) -> bool:
        """Whether a job took longer than its share of the queue: what was ahead of it, itself, and an open timer."""
        batches = -(-(self.ahead[job.number] + 1) // BATCH) + 1
        return job.answered - job.arrived > batches * (SERVICE.mean(BATCH) + 2 * HOP) + WHOLE_MILLISECOND

    def overtaken(self, job: Job) -> int:
        """Return how many jobs came after one and were sent before it."""
        return sum(self.sent[other] < self.sent[job] for other in self.jobs[job.number + 1 : job.number + NEAR])

    def _arrive(self, route: int = FLOOD) -> None:
        self.ahead.append(len(self.jobs) - len(self._answered))
        super()._arrive(route)

    def _send(self, worker: int, batch: list[Job], now: float) -> None:
        self.sent.update(dict.fromkeys(batch, len(self.batches)))
        super()._send(worker, batch, now)


def rows(seed: int) -> list[Row]:
    """Return a row for each size of the flood."""
    return [_row(clients, seed) for clients in CLIENTS]


def _row(clients: int, seed: int) -> Row:
    run = TwoRoutes(Pattern(Closed("flood", clients), SERVICE, 1, BATCH, seed, TASKS), Ours(1, BATCH, None))
    run.play()
    quiet, flood = run.latencies(QUIET), run.latencies(FLOOD)
    return Row(
        clients,
        median(quiet),
        quiet[int(0.99 * len(quiet))],
        median(flood),
        flood[int(0.99 * len(flood))],
        median(run.ahead[job.number] for job in run.quiet),
        sum(map(run.late, run.quiet)),
        sum(map(run.overtaken, run.quiet)),
    )
