"""What is simulated: how tasks arrive, what a batch costs, how many workers there are. All times are in seconds.

A pattern is drawn from its own seed, and the cost of a task goes with the task: every policy meets the same arrivals
and the same tasks. Only the cost of a whole batch is drawn by the batch, of which policies form different ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

# Of a request's way to the server and back, beside thinking: the median and the spread (sigma of its logarithm).
NETWORK = 0.0002
JITTER = 0.5
# A run has as many tasks as fill all workers so many times, within bounds.
ROUNDS = 30
LEAST_TASKS, MOST_TASKS = 1500, 8000

Draw = Callable[[random.Random], float]


def constant(_: random.Random) -> float:
    return 1.0


def lognormal(rng: random.Random) -> float:
    """Draw a factor of mean 1 whose 99th percentile is 3.4 times its median."""
    sigma = 0.52
    return rng.lognormvariate(-sigma * sigma / 2, sigma)


def pareto(rng: random.Random) -> float:
    """Draw a factor of mean 1, of which one in a hundred is above 5.7 and none above 30."""
    alpha = 1.8
    # A service has a timeout; and without a bound the few largest of a run would decide about its p99 alone.
    return min(30.0, rng.paretovariate(alpha) * (alpha - 1) / alpha)


@dataclass(frozen=True, slots=True)
class Service:
    """A model: a batch of n takes `fixed` times a factor, and `per_item` times a factor of its own for each item."""

    name: str
    fixed: float
    per_item: float
    draw: Draw = constant

    def mean(self, size: int) -> float:
        """Return the mean time of a batch."""
        return self.fixed + self.per_item * size


@dataclass(frozen=True, slots=True)
class Open:
    """Arrivals that do not depend on answers, at `load` times what all workers do with full batches.

    Attributes:
        name: what it is called.
        load: offered work / capacity, on average.
        burst: of a full batch's size: how many come together; 0 for one by one.
        duty: the share of the time in which any come, all of the load within it.
    """

    name: str
    load: float
    burst: float = 0.0
    duty: float = 1.0

    def times(self, rng: random.Random, count: int, rate: float, batch: int, period: float) -> list[float]:
        """Return `count` times of arrival.

        Args:
            rng: where chance comes from.
            count: how many.
            rate: tasks a second at a load of 1.
            batch: the most tasks in a batch.
            period: seconds from one on-time to the next.
        """
        rate *= self.load
        size = max(1, round(self.burst * batch))
        now = 0.0
        times: list[float] = []
        while len(times) < count:
            now += rng.expovariate(rate / size)
            # Those of a burst come over one network, not at one instant.
            times += [now + (_network(rng) if self.burst else 0.0) for _ in range(size)]
        times.sort()
        # Squeezed into the first part of each period, so that an on-time has all that would come in the period.
        return [period * (math.floor(t / period) + self.duty * (t / period % 1)) for t in times[:count]]


@dataclass(frozen=True, slots=True)
class Closed:
    """Clients that ask again when they are answered, after `think` seconds (exponential) and their way by network."""

    name: str
    clients: int
    think: float = 0.0

    def pause(self, rng: random.Random) -> float:
        """Return the time from a client's answer to its next request's arrival."""
        return _network(rng) + (rng.expovariate(1 / self.think) if self.think else 0.0)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One situation in which policies are compared.

    Attributes:
        arrivals: how tasks arrive.
        service: what a batch costs.
        workers: how many there are.
        batch: the most tasks in a batch.
        seed: of all chance in it.
        length: how many tasks a run has; None for as many as show what happens.
    """

    arrivals: Open | Closed
    service: Service
    workers: int
    batch: int
    seed: int
    length: int | None = None

    @property
    def name(self) -> str:
        """What it is called; no two of a grid have the same name."""
        return f"{self.arrivals.name}, {self.service.name}, {self.workers} x {self.batch}"

    @property
    def capacity(self) -> float:
        """Tasks a second that all workers do with full batches."""
        return self.workers * self.batch / self.service.mean(self.batch)

    @property
    def tasks(self) -> int:
        """How many tasks a run has."""
        if self.length is not None:
            return self.length
        at_once = self.workers * self.batch
        if isinstance(self.arrivals, Closed):
            at_once = min(at_once, self.arrivals.clients)
        return max(LEAST_TASKS, min(MOST_TASKS, ROUNDS * at_once))

    @property
    def rng(self) -> random.Random:
        """Chance, always the same for the same pattern."""
        return random.Random(f"{self.seed} {self.name}")


SERVICES = (
    Service("quick 0.5 ms + 0.02", 0.0005, 0.00002),
    Service("model 5 ms + 0.1", 0.005, 0.0001),
    Service("slow 40 ms + 1", 0.04, 0.001),
    Service("per item 0.2 ms + 1", 0.0002, 0.001),
    Service("lognormal 5 ms + 0.1", 0.005, 0.0001, lognormal),
    Service("pareto 5 ms + 0.1", 0.005, 0.0001, pareto),
)
ARRIVALS = (
    Open("poisson 0.05", 0.05),
    Open("poisson 0.2", 0.2),
    Open("poisson 0.5", 0.5),
    Open("poisson 0.8", 0.8),
    Open("poisson 0.95", 0.95),
    Open("poisson 1.2", 1.2),
    Open("bursts of a batch 0.5", 0.5, burst=1.0),
    Open("on/off 0.5", 0.5, duty=0.4),
    Closed("1 client", 1),
    Closed("2 clients", 2),
    Closed("8 clients", 8),
    Closed("64 clients", 64),
    Closed("256 clients", 256),
    Closed("8 clients, think 2 ms", 8, think=0.002),
    Closed("64 clients, think 10 ms", 64, think=0.01),
)
# Workers and the most tasks in a batch.
LAYOUTS = ((1, 8), (1, 32), (1, 64), (2, 32), (4, 32), (8, 8), (8, 64))


def grid(seed: int) -> list[Pattern]:
    """Return every combination of arrivals, services and layouts."""
    return [
        Pattern(arrivals, service, workers, batch, seed)
        for arrivals in ARRIVALS
        for service in SERVICES
        for workers, batch in LAYOUTS
    ]


def _network(rng: random.Random) -> float:
    return NETWORK * rng.lognormvariate(0.0, JITTER)
