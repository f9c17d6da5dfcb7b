"""What a request costs in processor time, and what other programs took of the machine meanwhile.

Requests per second depend on the machine, and on what else it does; what the system counts for the processes of a
service, divided by the requests that they have answered, does so much less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import processes
from problems import BenchmarkError
from processes import Role


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time of a request (of streams: of an event) in microseconds, user and system.

    Attributes:
        server: of all processes that are no workers: of mosec's these are its binary and its Python master.
        workers: of all workers together.
    """

    server: float
    workers: float

    @property
    def total(self) -> float:
        """Of all processes."""
        return self.server + self.workers


@dataclass(frozen=True, slots=True)
class Reading:
    """What the system has counted until a moment, in seconds of processor time.

    Attributes:
        at: the moment, in seconds of `time.monotonic`.
        service: of each process of the service its role and its time.
        ours: of this benchmark and all that it has started, the service too.
        all: of everything that runs on the machine, and what its host, where it is a virtual one, gave to others.
    """

    at: float
    service: Mapping[int, tuple[Role, float]]
    ours: float
    all: float


def read(leader: int) -> Reading | None:
    """Return what is counted now for the service whose first process is `leader`; None where that is not known."""
    if not processes.KNOWN:
        return None
    everything = processes.members(os.getpid())
    service = {pid: (processes.role_of(pid, leader), stat.own) for pid, stat in processes.members(leader).items()}
    return Reading(
        at=time.monotonic(),
        service=service,
        ours=sum(stat.own + stat.waited for stat in everything.values()),
        all=parse_machine((processes.PROC / "stat").read_text()),
    )


def parse_machine(text: str, ticks: int = processes.CLOCK_TICKS) -> float:
    """Return the seconds that processors were taken, by what /proc/stat says, which counts in `ticks` a second.

    Interrupts are left out: the system counts them for no process.
    """
    user, nice, system, _, _, _, _, steal = map(int, text.split()[1:9])
    return (user + nice + system + steal) / ticks


def cost(before: Reading, after: Reading, requests: int) -> Cost:
    """Return what each of `requests` requests cost that were answered between two readings.

    Raises:
        BenchmarkError: a process of the service has ended in between, and what it took is not known.
    """
    if ended := before.service.keys() - after.service.keys():
        raise BenchmarkError(f"processes of the service ended while it was measured: {sorted(ended)}")
    server = workers = 0.0
    for pid, (role, seconds) in after.service.items():
        # One that was started in between has taken all of its time since.
        taken = seconds - (before.service[pid][1] if pid in before.service else 0.0)
        if role == "worker":
            workers += taken
        else:
            server += taken
    return Cost(round(server / requests * 1e6, 3), round(workers / requests * 1e6, 3))


def others(before: Reading, after: Reading) -> float:
    """Return how many processors other programs kept busy between two readings, on average."""
    taken = (after.all - before.all) - (after.ours - before.ours)
    return round(max(0.0, taken / (after.at - before.at)), 3)
