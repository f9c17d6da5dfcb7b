"""Two servers of one scenario, measured in turn while the other one idles.

Fairer than to start and stop them one at a time, because the two halves of a pair are then a second apart instead of
five, on machines whose speed changes by the second; and an idle server takes nothing from the other: measured as
processor time over 5 s, mosec took 0 ms and mosec_asgi 10 ms. Who goes first alternates from round to round.
"""

from __future__ import annotations

import time

import cost
from problems import BenchmarkError
from results import Pair, Side
from scenarios import Scenario
from servers import RunningServer

WARM_UP_SECONDS = 1
# wrk leaves in the middle of its last requests; the server finishes them before the other one is measured.
SETTLE_SECONDS = 0.2


def in_turn(scenario: Scenario, theirs: RunningServer, ours: RunningServer, rounds: int, seconds: int) -> list[Pair]:
    """Warm both up, and then measure them `rounds` times; print each round.

    Args:
        scenario: whose load is put on them.
        theirs: what ours is compared with.
        ours: the other one.
        rounds: how many pairs.
        seconds: the length of each measurement, where the scenario does not stretch it.

    Raises:
        BenchmarkError: a server answers wrongly.
    """
    for server in (theirs, ours):
        measure(server, scenario, WARM_UP_SECONDS)
    pairs = []
    for number in range(rounds):
        if number % 2 == 0:
            its = measure(theirs, scenario, seconds)
            mine = measure(ours, scenario, seconds)
        else:
            mine = measure(ours, scenario, seconds)
            its = measure(theirs, scenario, seconds)
        pairs.append(Pair(its, mine))
        halves = "  ".join((_brief(theirs, scenario, its), _brief(ours, scenario, mine)))
        print(f"  {number + 1}/{rounds}  {halves}", flush=True)
    return pairs


def measure(server: RunningServer, scenario: Scenario, seconds: int) -> Side:
    """Put a scenario's load on a server once.

    Raises:
        BenchmarkError: it answers wrongly, or one of its processes has ended.
    """
    try:
        before = cost.read(server.process.pid)
        measurement = scenario.load.put_on(server.url, scenario.connections, seconds * scenario.stretch)
        after = cost.read(server.process.pid)
        spent = cost.cost(before, after, measurement.done) if before and after else None
        others = cost.others(before, after) if before and after else None
    except (BenchmarkError, OSError) as error:
        raise server.failure(str(error)) from error
    time.sleep(SETTLE_SECONDS)
    return Side(measurement, spent, others)


def _brief(server: RunningServer, scenario: Scenario, side: Side) -> str:
    measured = side.measurement
    text = f"{server.name} {measured.per_second:,.0f} {scenario.load.unit} p50 {measured.p50_ms:.2f} ms"
    return text if side.cost is None else f"{text} {side.cost.total:.1f} µs"
