"""Tenants under load, on virtual time: what one feels of another's burst, and what each gets for its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from harness import benchmark

from mosec_asgi.batching.policy.rules import Rules

cases = benchmark("overload.cases")
world = benchmark("overload.world")

SECONDS = 30.0
# Each does a hundred a second, but for the last, which does 160.
SERVICES = {
    "one worker": world.SimulatedStage(cases.constant(0.01)),
    "four workers": world.SimulatedStage(cases.constant(0.04), num=4),
    "sixteen slots": world.SimulatedStage(cases.constant(0.1), concurrency=16),
}
CAPACITY = {"one worker": 100.0, "four workers": 100.0, "sixteen slots": 160.0}


def run(stage: Any, rates: Mapping[str, float]) -> Any:
    """Let tenants send so many calls a second, each by chance."""
    calls = [
        replace(call, tenant=tenant)
        for place, (tenant, rate) in enumerate(rates.items())
        for call in cases.poisson(rate, SECONDS, 11 + place)
    ]
    return world.World([stage], timeout=2.0, seed=3).run(sorted(calls, key=lambda call: call.at))


def answers(history: Any, tenant: str) -> list[Any]:
    return [answer for answer in history.within(10.0, SECONDS - 5.0) if answer.call.tenant == tenant]


def p99(history: Any, tenant: str) -> float:
    latencies = sorted(answer.latency for answer in answers(history, tenant) if answer.code == 200)
    return float(latencies[int(0.99 * len(latencies))])


def share(history: Any, tenant: str) -> float:
    """Return which share of a tenant's calls were answered well."""
    ours = answers(history, tenant)
    return sum(answer.code == 200 for answer in ours) / len(ours)


@pytest.mark.parametrize("name", SERVICES)
def test_ten_times_the_load_beside_it_costs_a_tenant_half_of_its_own_p99_at_most(name: str) -> None:
    stage, light = SERVICES[name], 0.05 * CAPACITY[name]
    alone = run(stage, {"light": light})
    both = run(stage, {"light": light, "heavy": 10 * light})
    assert p99(both, "light") <= 1.5 * p99(alone, "light")
    assert share(both, "light") == 1.0


@pytest.mark.parametrize("name", ["one worker", "sixteen slots"])
def test_a_tenant_that_alone_asks_for_more_than_there_is_costs_others_no_more_than_what_runs(name: str) -> None:
    stage, light = SERVICES[name], 0.1 * CAPACITY[name]
    alone = run(stage, {"light": light})
    both = run(stage, {"light": light, "heavy": 20 * light})
    takes = stage.seconds(None, 1, 0.0)
    # What runs is not interrupted, and of those that the light one has waiting each waits for one of the other's.
    assert p99(both, "light") <= p99(alone, "light") + max(takes, 5 * takes / stage.concurrency)
    assert share(both, "light") == 1.0
    assert share(both, "heavy") >= 0.4, "the other nine tenths of the capacity are its own"


@pytest.mark.parametrize("name", ["one worker", "sixteen slots"])
def test_weights_of_three_to_one_give_three_to_one(name: str) -> None:
    stage = replace(SERVICES[name], rules=Rules(weights={"gold": 3.0}))
    history = run(stage, {"gold": 1.5 * CAPACITY[name], "free": 1.5 * CAPACITY[name]})
    gold, free = (sum(answer.code == 200 for answer in answers(history, tenant)) for tenant in ("gold", "free"))
    assert gold / free == pytest.approx(3.0, rel=0.1)
    assert gold + free >= 0.95 * CAPACITY[name] * (SECONDS - 15.0)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_tenant_that_asks_for_less_than_its_share_is_not_refused_where_the_stage_stands_still(workers: int) -> None:
    def seconds(chance: Any, items: int, now: float) -> float:
        return 0.01 * (30.0 if int(now) % 10 == 5 else 1.0)

    light = 0.08 * workers / 0.01
    history = run(world.SimulatedStage(seconds, num=workers), {"light": light, "heavy": 10 * light})
    codes = {tenant: {answer.code for answer in answers(history, tenant)} for tenant in ("light", "heavy")}
    assert codes == {"light": {200}, "heavy": {200, 429}}
