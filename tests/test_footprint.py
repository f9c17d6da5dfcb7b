"""`make footprint`: what it measures, and how it is judged."""

from __future__ import annotations

import sys

import pytest
from harness import benchmark

footprint = benchmark("footprint")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_process_of_a_service_is_found_and_has_its_role() -> None:
    measured = footprint.measure("mosec_asgi")
    assert measured.memory.keys() == {"server", "worker", "tracker"}
    assert all(1 < memory.pss <= memory.rss for memory in measured.memory.values())
    assert measured.processor > 0
    assert measured.seconds > 0


def side(seconds: float, worker: float) -> footprint.Footprint:
    memory = {role: footprint.Memory(worker, worker) for role in ("server", "worker")}
    return footprint.Footprint(seconds, 0.1, memory)


def test_the_median_of_the_ratios_is_held_against_the_bar() -> None:
    # One slow start in three is the machine's doing.
    rounds = [{"mosec": side(1.0, 10.0), "mosec_asgi": side(seconds, 12.0)} for seconds in (1.0, 5.0, 1.1)]
    rows = {line[:24].strip(): line for line in footprint.table(rounds)}
    assert "1.10  1.00-5.00  met" in rows["s to the first 200"]
    assert "1.20  1.20-1.20  MISSED" in rows["MB PSS, worker"]
    assert "met" not in rows["MB RSS, all"]
