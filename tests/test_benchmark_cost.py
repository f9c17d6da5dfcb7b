"""What a request costs: read from /proc, for servers and workers apart, over the measured span."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import benchmark

processes = benchmark("processes")
cost = benchmark("cost")
problems = benchmark("problems")
servers = benchmark("servers")
load = benchmark("load")

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# proc(5): pid, name, state, parent, ..., and as 14th to 17th user, system, waited-for user, waited-for system.
STAT = "4711 (a) b (c) S 42 4711 4711 0 -1 4194304 99 0 0 0 1234 56 7 8 20 0 1 0 53284 3133440 382 1844674407370955 1"
MACHINE = "cpu  1000 200 300 9000 50 7 8 40 600 30\ncpu0 500 100 150 4500 25 3 4 20 300 15\n"


# -- /proc -------------------------------------------------------------------------------------------------------------


def test_times_are_read_whatever_is_in_the_name_of_the_process() -> None:
    stat = processes.parse_stat(STAT, ticks=100)
    assert stat == processes.Stat(parent=42, user=12.34, system=0.56, waited=pytest.approx(0.15))
    assert stat.own == pytest.approx(12.9)


def test_the_machine_was_taken_by_all_programs_and_its_host_but_not_by_interrupts() -> None:
    # Guests' time is part of user's already.
    assert cost.parse_machine(MACHINE, ticks=100) == 15.4


def test_a_family_is_a_process_and_all_that_descend_from_it() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 13: 10, 21: 20}
    assert processes.family(parents, 10) == [10, 11, 13, 12]
    assert processes.family(parents, 21) == [21]


def test_a_process_that_is_its_own_parent_is_found_once() -> None:
    assert processes.family({0: 0, 1: 0}, 0) == [0, 1]


@pytest.mark.parametrize(
    ("command", "leads", "same_program", "role"),
    [
        (b"python\0echo.py", True, True, "server"),
        (b"python\0-c\0from multiprocessing.spawn import spawn_main", False, True, "worker"),
        # Forked.
        (b"python\0echo.py", False, True, "worker"),
        (b"python\0-c\0from multiprocessing.resource_tracker import main", False, True, "tracker"),
        (b"/venv/bin/mosec\0config.json", False, False, "binary"),
    ],
)
def test_the_role_of_a_process(command: bytes, leads: bool, same_program: bool, role: str) -> None:
    assert processes.role(command, leads=leads, same_program=same_program) == role


@linux
def test_the_time_of_a_process_is_found_with_that_of_children_that_have_ended() -> None:
    program = "import time, sys\nwhile time.process_time() < 0.3: pass\n"
    before = processes.read_stat(os.getpid())
    subprocess.run([sys.executable, "-c", program], check=True)
    assert processes.read_stat(os.getpid()).waited - before.waited >= 0.25


# -- Cost --------------------------------------------------------------------------------------------------------------


def reading(at: float = 0.0, *, ours: float = 0.0, everything: float = 0.0, **service: float) -> Any:
    """Return a reading; the names of processes begin with their role, and end with their id."""
    found = {int(name.partition("_")[2]): (name.partition("_")[0], seconds) for name, seconds in service.items()}
    return cost.Reading(at, found, ours, everything)


def test_servers_and_workers_are_counted_apart_over_the_span_alone() -> None:
    before = reading(server_1=5.0, binary_2=1.0, tracker_3=0.1, worker_4=2.0, worker_5=3.0)
    after = reading(server_1=5.5, binary_2=3.0, tracker_3=0.2, worker_4=2.25, worker_5=4.0)
    measured = cost.cost(before, after, 100_000)
    assert (measured.server, measured.workers, measured.total) == (26.0, 12.5, 38.5)


def test_a_process_that_was_started_meanwhile_counts_from_its_start() -> None:
    measured = cost.cost(reading(server_1=1.0), reading(server_1=1.0, worker_2=0.5), 1000)
    assert (measured.server, measured.workers) == (0.0, 500.0)


def test_a_process_that_ended_meanwhile_leaves_no_number() -> None:
    with pytest.raises(problems.BenchmarkError, match=r"\[2\]"):
        cost.cost(reading(server_1=1.0, worker_2=0.5), reading(server_1=2.0), 1000)


def test_what_other_programs_took_is_what_nobody_of_ours_did() -> None:
    before = reading(10.0, ours=5.0, everything=100.0)
    assert cost.others(before, reading(14.0, ours=9.0, everything=106.0)) == 0.5
    # Both are counted in hundredths of a second.
    assert cost.others(before, reading(14.0, ours=9.01, everything=104.0)) == 0.0


@pytest.fixture
def echo() -> Iterator[Any]:
    with servers.running("echo", ["mosec_asgi"], load.ECHOES) as (server,):
        yield server


def spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@linux
def test_a_service_has_a_cost_and_what_the_benchmark_does_meanwhile_is_nobody_elses(echo: Any) -> None:
    before = cost.read(echo.process.pid)
    for _ in range(300):
        assert echo.ask("POST", servers.ROUTE, load.ECHOES.example)[0] == 200
    spin(0.3)
    after = cost.read(echo.process.pid)
    assert before is not None
    assert after is not None
    measured = cost.cost(before, after, 300)
    assert sorted(role for role, _ in after.service.values()) == ["server", "tracker", "worker"]
    assert measured.total > 0
    assert after.ours - before.ours >= 0.3 + measured.total * 300 / 1e6


@linux
def test_elsewhere_than_on_linux_there_is_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "KNOWN", False)
    assert cost.read(os.getpid()) is None
