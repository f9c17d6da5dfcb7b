"""How long a service takes to start and what it holds then: `make footprint`, beside mosec.

An echo service of each package is started in turn, alone, several times. Measured are the seconds from the start of
`python echo.py` to the first 200 from its worker, the processor time that all of its processes took until then (which
other programs of the machine disturb less), and the memory of each process once it has answered.

Compared is mosec's Python side, its master and its worker, with ours: the server with the server, the worker with the
worker. mosec's HTTP side is a third process, a binary, and `multiprocessing` keeps a process beside each server, which
tracks resources; both are printed and stand in the sum of all, against which nothing is held.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import machine
import processes
import servers
from load import ECHOES
from problems import BenchmarkError

SERVICE = "echo"
ROUNDS = 7
# The most that ours may need of what mosec's needs.
BAR = 1.1
POLL = 0.001
BUSY_POLL = 0.02
# Seconds that a service gets to come to rest before its memory is looked at.
SETTLE = 0.3
ROLES = ("server", "worker", "binary", "tracker")
PACKAGES: tuple[servers.Package, servers.Package] = ("mosec", "mosec_asgi")


@dataclass(frozen=True, slots=True)
class Memory:
    """What processes hold, in MB.

    Attributes:
        rss: pages in memory.
        pss: the same, each page divided by the number of processes that share it.
    """

    rss: float = 0.0
    pss: float = 0.0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss)


@dataclass(frozen=True, slots=True)
class Footprint:
    """One start of a service.

    Attributes:
        seconds: from its start to its first answer.
        processor: seconds of processor time that its processes took until then.
        memory: of its processes by role.
    """

    seconds: float
    processor: float
    memory: Mapping[str, Memory]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code, 1 where nothing could be measured."""
    parser = argparse.ArgumentParser(description="Compare the start and the memory of mosec_asgi and mosec.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="starts of each (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if not Path("/proc/self/smaps_rollup").exists():
            raise BenchmarkError("this reads the memory of processes from /proc/*/smaps_rollup, which Linux alone has")
        servers.check_mosec()
        # The first start of each may compile modules, and reads them from the disk.
        for package in PACKAGES:
            measure(package)
        rounds = [measure_both(number) for number in range(max(1, options.rounds))]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    where = machine.describe()
    print(f"{where['cpu']}, {where['cores']} cores, load average {where['load_average_before']}; {where['python']}")
    print("\n".join(table(rounds)))
    return 0


def measure_both(number: int) -> dict[str, Footprint]:
    """Start both, one after the other; who goes first alternates with the round's number."""
    order = PACKAGES if number % 2 == 0 else PACKAGES[::-1]
    return {package: measure(package) for package in order}


def measure(package: servers.Package) -> Footprint:
    """Start the service of a package, measure it, and stop it.

    Raises:
        BenchmarkError: it does not start, or its answer is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        began = time.perf_counter()
        server = servers.start(SERVICE, package, Path(folder))
        try:
            _wait_for_answer(server)
            seconds = time.perf_counter() - began
            # With what its children took that have ended since.
            processor = sum(stat.own + stat.waited for stat in processes.members(server.process.pid).values())
            time.sleep(SETTLE)
            memory: dict[str, Memory] = {}
            for pid in processes.members(server.process.pid):
                role = processes.role_of(pid, server.process.pid)
                memory[role] = memory.get(role, Memory()) + _memory(pid)
        finally:
            servers.stop([server])
    return Footprint(seconds, processor, memory)


def table(rounds: Sequence[Mapping[str, Footprint]]) -> list[str]:
    """Return what was measured as lines of text: medians, the median of the ratios, and whether it meets the bar."""
    roles = [role for role in ROLES if any(role in both[package].memory for both in rounds for package in PACKAGES)]
    lines = [f"{'median of ' + str(len(rounds)):24} {'mosec':>8} {'ours':>8} {'ours / theirs':>14}  spread"]

    def row(name: str, theirs: Sequence[float], ours: Sequence[float], held: bool) -> None:
        ratios = [mine / its for its, mine in zip(theirs, ours, strict=True) if its]
        verdict = ""
        if ratios:
            met = "" if not held else "  met" if median(ratios) <= BAR else f"  MISSED: at most {BAR}"
            verdict = f"{median(ratios):14.2f}  {min(ratios):.2f}-{max(ratios):.2f}{met}"
        lines.append(f"{name:24} {median(theirs):8.3g} {median(ours):8.3g} {verdict}".rstrip())

    theirs, ours = ([both[package] for both in rounds] for package in PACKAGES)
    row("s to the first 200", [one.seconds for one in theirs], [one.seconds for one in ours], True)
    row("s of processor time", [one.processor for one in theirs], [one.processor for one in ours], False)
    for kind in ("rss", "pss"):
        for role in roles:
            its, mine = ([getattr(one.memory.get(role, Memory()), kind) for one in side] for side in (theirs, ours))
            row(f"MB {kind.upper()}, {role}", its, mine, role in ("server", "worker"))
        its, mine = ([sum(getattr(m, kind) for m in one.memory.values()) for one in side] for side in (theirs, ours))
        row(f"MB {kind.upper()}, all", its, mine, False)
    return lines


def _wait_for_answer(server: servers.RunningServer) -> None:
    deadline = time.monotonic() + servers.SECONDS_TO_START
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise server.failure(f"ended with {server.process.returncode} at its start")
        try:
            status, body = server.ask("POST", servers.ROUTE, ECHOES.example)
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        if status == 200:
            if not ECHOES.is_right(body):
                raise server.failure(f"POST {servers.ROUTE} is answered {body!r}")
            return
        # Ours answers while its worker loads, and what it takes for that is no part of a start.
        time.sleep(BUSY_POLL if status else POLL)
    raise server.failure(f"POST {servers.ROUTE} is not answered 200 after {servers.SECONDS_TO_START:.0f} s")


def _memory(pid: int) -> Memory:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return Memory(*(int(rows[name].split()[0]) / 1024 for name in ("Rss", "Pss")))


if __name__ == "__main__":
    sys.exit(main())
