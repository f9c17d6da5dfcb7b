"""The services and the loads that are tried in the simulated world, and what is said of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mosec_asgi.batching.policy.rules import Rules
from overload.world import Arrival, History, SimulatedStage, World

# Seconds before anything is judged: the first measurements.
WARM_UP = 5.0


@dataclass(frozen=True, slots=True)
class Service:
    """A service whose capacity is known.

    Attributes:
        stages: what runs.
        capacity: calls per second that it can do at most.
        bottleneck: the stage that has no more to give then.
        costs: draws what a call costs.
    """

    stages: Sequence[SimulatedStage]
    capacity: float
    bottleneck: int = 0
    costs: Callable[[Random], int] = lambda random: 0


def constant(seconds: float) -> Callable[[Random, int, float], float]:
    """Return a time that does not change."""
    return lambda random, items, now: seconds


def heavy_tailed(random: Random, items: int, now: float) -> float:
    """Nine in ten take 20 ms, the tenth 320 ms: 50 ms on average."""
    return 0.02 if random.random() < 0.9 else 0.32


def exponential(random: Random, items: int, now: float) -> float:
    """50 ms on average."""
    return random.expovariate(20.0)


def batches(random: Random, items: int, now: float) -> float:
    """20 ms for a batch and 5 ms more for each item."""
    return 0.02 + 0.005 * items


# Of calls that cost 1 to 128, short ones more often; on average as much.
COSTS = [1 << power for power in range(8)]
MEAN_COST = sum(COSTS) / len(COSTS)
MAX_COST = 512


def by_cost(random: Random, cost: int, now: float) -> float:
    """20 ms for a batch and 0.15 ms more for what each token of it costs."""
    return 0.02 + 0.00015 * cost


def _by_cost(most: int, **options: Any) -> Service:
    """Return a service whose batches are of `most` calls at most, and cost no more than `MAX_COST`."""
    stage = SimulatedStage(by_cost, batch=most, rules=Rules(max_cost=MAX_COST), **options)
    # A batch ends where the next call does not fit.
    cost = MAX_COST - MEAN_COST / 2
    capacity = stage.num * cost / MEAN_COST / by_cost(Random(), int(cost), 0.0)
    return Service([stage], capacity, costs=lambda random: random.choice(COSTS))


SERVICES: Mapping[str, Service] = {
    "constant": Service([SimulatedStage(constant(0.05))], 20.0),
    "heavy-tailed": Service([SimulatedStage(heavy_tailed)], 20.0),
    "exponential": Service([SimulatedStage(exponential)], 20.0),
    "batches": Service([SimulatedStage(batches, batch=8)], 8 / 0.06),
    "batches that wait": Service([SimulatedStage(batches, batch=8, max_wait=0.01)], 8 / 0.06),
    "two stages, first slower": Service([SimulatedStage(constant(0.05)), SimulatedStage(constant(0.04))], 20.0),
    "two stages, second slower": Service([SimulatedStage(constant(0.02)), SimulatedStage(constant(0.05))], 20.0, 1),
    "two stages, nearly alike": Service([SimulatedStage(constant(0.04)), SimulatedStage(constant(0.05))], 20.0, 1),
    "two stages, heavy-tailed": Service([SimulatedStage(constant(0.04)), SimulatedStage(heavy_tailed)], 20.0, 1),
    "four replicas": Service([SimulatedStage(constant(0.1), num=4)], 40.0),
    "concurrency 50": Service([SimulatedStage(constant(0.1), concurrency=50)], 500.0),
    "concurrent batches": Service([SimulatedStage(batches, batch=8, concurrency=4)], 4 * 8 / 0.06),
    "streams": Service([SimulatedStage(constant(0.4), concurrency=8, first_event=0.05)], 20.0),
    "batches by cost": _by_cost(32),
    "batches by cost, four replicas": _by_cost(128, num=4),
    "streams one by one": Service([SimulatedStage(constant(0.05), first_event=0.01)], 20.0),
}


def poisson(rate: float, seconds: float, seed: int, route: int = 0, start: float = 0.0) -> list[Arrival]:
    """Return calls that come by chance, at `rate` a second."""
    random = Random(seed)
    calls: list[Arrival] = []
    at = start + random.expovariate(rate)
    while at < start + seconds:
        calls.append(Arrival(at, route))
        at += random.expovariate(rate)
    return calls


def bursts(size: int, period: float, seconds: float) -> list[Arrival]:
    """Return calls of which `size` come at once in each period."""
    return [Arrival(number * period) for number in range(int(seconds / period)) for _ in range(size)]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a load.

    Attributes:
        goodput: answered in time, as a share of what the service could do.
        at_work: the share of the bottleneck's slots that were at work.
        useful: the same, and at work for calls that were answered well.
        median: milliseconds to the answer of those that were answered.
        refused: the share of the calls that were answered 429.
        timed_out: 408.
        wasted: the share of the begun items that belong to calls answered 408.
    """

    goodput: float
    at_work: float
    useful: float
    median: float
    refused: float
    timed_out: float
    wasted: float

    def __str__(self) -> str:
        return (
            f"goodput {self.goodput:5.3f}  at work {self.at_work:5.3f}, useful {self.useful:5.3f}"
            f"  median {self.median:4.0f} ms  429 {self.refused:6.2%}  408 {self.timed_out:6.2%}"
            f"  wasted {self.wasted:5.2%}"
        )


def result_of(history: History, service: Service, start: float, end: float) -> Result:
    """Return what became of the calls of a span of time."""
    answers = history.within(start, end)
    latencies = sorted(answer.latency for answer in answers if answer.code == 200)
    count = max(1, len(answers))
    return Result(
        history.good_in(start, end) / (service.capacity * (end - start)),
        history.work_of(service.stages[service.bottleneck], start, end),
        history.useful_work_of(service.stages[service.bottleneck], start, end),
        1000 * latencies[len(latencies) // 2] if latencies else float("nan"),
        sum(answer.code == 429 for answer in answers) / count,
        sum(answer.code == 408 for answer in answers) / count,
        history.wasted,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of a load, beside what becomes of the same calls where none is refused.

    Attributes:
        refused: the share of the calls that were answered 429.
        lost: the share of those that were refused and would have been answered in time.
        good, good_without: the shares that were answered in time.
    """

    refused: float
    lost: float
    good: float
    good_without: float


def compare(name: str, load: float, *, seconds: float = 100.0, seeds: Sequence[int] = (0,)) -> Comparison:
    """Put a steady load on one of `SERVICES`, and the same calls on one that does not shed load."""
    pairs: Counter[tuple[int, int]] = Counter()
    for seed in seeds:
        with_it, without = (
            _steady(name, load, seconds, seed, shedding).within(WARM_UP, seconds) for shedding in (True, False)
        )
        pairs.update((a.code, b.code) for a, b in zip(with_it, without, strict=True))
    total = pairs.total()

    def share(ours: int | None, theirs: int | None) -> float:
        return sum(n for (a, b), n in pairs.items() if ours in (a, None) and theirs in (b, None)) / total

    return Comparison(share(429, None), share(429, 200), share(200, None), share(None, 200))


def steady(
    name: str, load: float, *, seconds: float = 40.0, seed: int = 0, load_shedding: bool = True, timeout: float = 1.0
) -> Result:
    """Put a steady load on one of `SERVICES`.

    Args:
        name: of the service.
        load: in relation to its capacity.
        seconds: for how long.
        seed: of all that is random.
        load_shedding: the setting.
        timeout: of the service, in seconds.
    """
    history = _steady(name, load, seconds, seed, load_shedding, timeout)
    return result_of(history, SERVICES[name], WARM_UP, seconds)


def _steady(name: str, load: float, seconds: float, seed: int, load_shedding: bool, timeout: float = 1.0) -> History:
    service = SERVICES[name]
    world = World(service.stages, load_shedding=load_shedding, timeout=timeout, seed=seed)
    costs = Random(seed)
    calls = [replace(call, cost=service.costs(costs)) for call in poisson(service.capacity * load, seconds, seed)]
    return world.run(calls)
