"""`make hostile`: what its judge takes for a broken promise, and one attack of its table from end to end."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
from typing import Any

import pytest
from harness import benchmark

judge = benchmark("hostile.judge")
command = benchmark("hostile.__main__")
servers = benchmark("servers")

WORKERS = frozenset((2, 3))
REST = judge.Held(memory=300_000_000, descriptors=100, workers=WORKERS)
QUICK = judge.Latencies([0.010] * 200)
KEPT = judge.Measured(
    usual=QUICK,
    during=QUICK,
    beside=QUICK,
    before=REST,
    peak=350_000_000,
    after=REST,
    answers=True,
    log=[],
    done={"408": 3},
    problems={},
)


def test_what_stays_within_its_bounds_is_kept() -> None:
    slower = judge.Latencies([0.010] * 200 + [0.019] * 100)
    assert judge.broken(KEPT) == []
    assert judge.broken(dataclasses.replace(KEPT, during=slower)) == []
    assert judge.broken(dataclasses.replace(KEPT, after=judge.Held(310_000_000, 90, WORKERS))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"during": judge.Latencies([0.010] * 97 + [0.030] * 3)},
            "p99 was 30.0 ms, and is 10.0 ms else; where .* 10.0 ms",
        ),
        ({"during": judge.Latencies([])}, "p99 was inf ms"),
        ({"during": judge.Latencies(QUICK.seconds, {"it was answered 503": 2})}, r"answered 503 \(2 times\)"),
        ({"peak": 501_000_000}, "held 201 MB more, and 200 are allowed"),
        ({"after": judge.Held(370_000_000, 100, WORKERS)}, "70 MB more are held afterwards"),
        ({"after": judge.Held(300_000_000, 101, WORKERS)}, "1 descriptors more"),
        ({"after": judge.Held(300_000_000, 100, frozenset((2, 4)))}, "a worker was replaced"),
        ({"answers": False}, "does not answer afterwards"),
        ({"log": ["Traceback"]}, "in the log: Traceback"),
        ({"problems": {"answered 0, not [413]": 1}}, r"answered 0, not \[413\] \(1 times\)"),
        ({"done": {}}, "the attackers did nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_promise_is_found(change: dict[str, Any], said: str) -> None:
    (fault,) = judge.broken(dataclasses.replace(KEPT, **change))
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(fault)


@pytest.mark.skipif(not importlib.util.find_spec("resource"), reason="looks into other processes by /proc")
def test_an_attack_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Its latency is that of a machine that runs tests; all else must hold."""
    chosen = [attack for attack in command.ATTACKS if attack.name == "early-answers"]
    with servers.alone("attacked") as server, servers.alone("attacked") as spared:
        measured = asyncio.run(command.attacked(server, spared, chosen, seconds=1.0))["early-answers"]
    assert judge.broken(dataclasses.replace(measured, during=measured.usual)) == []
    assert set(measured.done) <= {"404", "405", "413", "415"}
    assert measured.during.seconds
    assert "early-answers" in capsys.readouterr().out


def test_a_latency_that_the_machine_makes_is_no_fault_of_the_service() -> None:
    slow = judge.Latencies([0.050] * 200)
    assert judge.broken(dataclasses.replace(KEPT, during=slow, beside=slow)) == []


def test_every_attack_has_a_name_of_its_own_and_says_what_it_is() -> None:
    assert len({attack.name for attack in command.ATTACKS}) == len(command.ATTACKS)
    assert all(attack.text for attack in command.ATTACKS)
