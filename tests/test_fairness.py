"""Tenants and priorities under load: the real coordinator on virtual time, with workers that only take time."""

from __future__ import annotations

import statistics
from random import Random
from typing import Any

import pytest
from harness import benchmark

from mosec_asgi.batching.policy.rules import Rules

cases = benchmark("overload.cases")
world = benchmark("overload.world")


def by_chance(random: Random, items: int, now: float) -> float:
    """Return the seconds of a task: 40 ms at the mean."""
    return random.expovariate(25.0)


# Each does 200 in a second.
STAGES = {
    "batches of 16": {"batch": 16, "seconds": cases.constant(0.08)},
    "eight workers": {"num": 8, "seconds": by_chance},
    "concurrency 8": {"concurrency": 8, "seconds": by_chance},
}
SECONDS = 15.0


def calls(rate: float, seed: int, seconds: float = SECONDS, **of: Any) -> list[Any]:
    """Return calls that come by chance."""
    random, at, made = Random(seed), 0.0, []
    while (at := at + random.expovariate(rate)) < seconds:
        made.append(world.Arrival(at, **of))
    return made


def run(stage: dict[str, Any], *loads: list[Any], **options: Any) -> Any:
    arrivals = sorted((call for load in loads for call in load), key=lambda call: call.at)
    return world.World([world.SimulatedStage(**stage)], **options).run(arrivals)


def of(history: Any, **what: Any) -> list[Any]:
    """Return the answers to calls of a kind, without those of the first seconds."""
    answers = history.within(5.0, SECONDS)
    return [answer for answer in answers if all(getattr(answer.call, name) == value for name, value in what.items())]


def p99(answers: list[Any]) -> float:
    return statistics.quantiles([answer.latency for answer in answers], n=100)[98]


def well(answers: list[Any]) -> int:
    return sum(answer.code == 200 for answer in answers)


@pytest.mark.parametrize("name", STAGES)
def test_a_burst_of_one_tenant_does_not_delay_another(name: str) -> None:
    """The light tenant asks for 0.15 of what the stage can do, and the other one for ten times as much."""
    light = calls(30.0, 1, tenant="light")
    alone = of(run(STAGES[name], light), tenant="light")
    history = run(STAGES[name], light, calls(300.0, 2, tenant="heavy"))
    beside = of(history, tenant="light")
    assert well(beside) == len(beside) == len(alone), "none is refused, none is late"
    assert p99(beside) <= 1.5 * p99(alone)
    served = well(of(history, tenant="heavy")) + len(beside)
    assert served >= 0.92 * 200.0 * (SECONDS - 5.0), "and no work is lost by it"


@pytest.mark.parametrize("name", STAGES)
def test_without_tenants_the_same_burst_does_delay_it(name: str) -> None:
    """What the test above shows is not there by itself."""
    light = calls(30.0, 1, timeout=0.99)
    alone = of(run(STAGES[name], light), timeout=0.99)
    beside = of(run(STAGES[name], light, calls(300.0, 2)), timeout=0.99)
    assert well(beside) < len(beside) or p99(beside) > 1.5 * p99(alone)


@pytest.mark.parametrize("name", STAGES)
def test_weights_are_the_shares_under_overload(name: str) -> None:
    stage = {**STAGES[name], "rules": Rules(weights={"gold": 3.0})}
    history = run(stage, calls(400.0, 1, tenant="gold"), calls(400.0, 2, tenant="free"))
    gold, free = (well(of(history, tenant=tenant)) for tenant in ("gold", "free"))
    assert gold / free == pytest.approx(3.0, rel=0.1)
    assert gold + free >= 0.92 * 200.0 * (SECONDS - 5.0)


@pytest.mark.parametrize("name", STAGES)
def test_the_lowest_priority_is_refused_first(name: str) -> None:
    """Three priorities of 0.6 of what the stage can do each: the highest is served, the lowest hardly."""
    loads = [calls(120.0, seed, priority=priority) for seed, priority in enumerate((-1, 0, 5))]
    history = run(STAGES[name], *loads)
    shares = [well(of(history, priority=each)) / len(of(history, priority=each)) for each in (-1, 0, 5)]
    assert shares[2] >= 0.99
    assert 0.4 <= shares[1] <= 0.8
    assert shares[0] <= 0.1
    lowest = of(history, priority=-1)
    assert all(answer.code in (200, 408, 429) for answer in lowest)
    assert {answer.code for answer in lowest} >= {429}


def test_none_starves_behind_a_higher_priority() -> None:
    """Below its capacity a stage serves all: what waits is worth more with every second."""
    loads = [calls(80.0, 1, priority=10), calls(80.0, 2, priority=-10)]
    history = run(STAGES["batches of 16"], *loads)
    assert well(of(history, priority=-10)) == len(of(history, priority=-10))


def test_a_higher_priority_takes_the_place_of_a_lower_one_at_the_capacity() -> None:
    stage = {"seconds": cases.constant(0.5)}
    first = [world.Arrival(0.01 * number) for number in range(4)]
    late = world.Arrival(0.1, priority=1)
    history = run(stage, first, [late], capacity=4, timeout=10.0)
    codes = {answer.call.at: answer.code for answer in history.answers}
    assert codes == {0.0: 200, 0.01: 200, 0.02: 200, 0.03: 429, 0.1: 200}
    gave_way = next(answer for answer in history.answers if answer.code == 429)
    assert "gave its place" in gave_way.text
    assert gave_way.retry_after >= 1
    assert gave_way.latency == pytest.approx(0.07)
    assert history.metrics.stages[0].refusals["gave_way"] == 1


def test_a_tenant_does_not_take_places_of_its_own() -> None:
    stage = {"seconds": cases.constant(0.5)}
    history = run(stage, [world.Arrival(0.01 * n, tenant="one") for n in range(6)], capacity=4, timeout=10.0)
    assert [answer.code for answer in history.answers] == [200] * 4 + [429] * 2
