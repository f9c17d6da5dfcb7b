"""Several web processes with one engine: `make http-processes`, or `python benchmarks/http_processes.py --only kills`.

Part `kills`: 20,000 requests of all kinds (JSON, large bodies, streams, OpenAI's chat) to two web processes, of which
one after the other is killed. Whatever is answered must be the answer to its request; a request whose connection died
with its process is sent again. In the end nothing may be on its way, no memory taken, each model loaded once, and no
process left.

Part `cost`: the same loads on one process and on two web processes, in turn and in one run. The requests a second may
not fall below a share of those of one process, though on two cores five processes then share what three had; and what
the engine, each web process and each worker takes of the processor for a request says what more cores would bring.
What web processes gain depends on how many requests are on their way: all that a process says in a turn goes as one
message, so more of them share its cost. So large bodies are measured with few connections and with many; the share is
asked for with many, and told with few. The exit status is 1 where any of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import processes
import servers
from connection import Connection, Lost, connected
from load import ECHOES, LARGE_ECHOES, Load
from problems import BenchmarkError
from servers import Checkout, RunningServer

REQUESTS = 20_000
CLIENTS = 24
KILL_SECONDS = 1.0
REST_SECONDS = 10.0
MODELS = 3
# Bytes that all processes together may have beside the model: each is a Python with a web framework.
MODEL_BYTES = 64 << 20
HERE = Path(__file__).parent.parent
WEB = (("MOSEC_HTTP_PROCESSES", "2"),)


class Kind(NamedTuple):
    """A kind of request, and the least share of one process's requests a second that two web processes must reach.

    Attributes:
        share: None where it is told and not asked for.
    """

    name: str
    service: str
    load: Load
    connections: int
    share: float | None


KINDS = (
    Kind("echo", "echo", ECHOES, 32, 0.6),
    Kind("bodies of 100 kB", "bytes_echo", LARGE_ECHOES, 16, None),
    Kind("bodies of 100 kB", "bytes_echo", LARGE_ECHOES, 32, None),
    Kind("bodies of 100 kB", "bytes_echo", LARGE_ECHOES, 64, 0.85),
    Kind("bodies of 100 kB", "bytes_echo", LARGE_ECHOES, 128, 0.85),
)


# -- kills -----------------------------------------------------------------------------------------------------------


class Requests:
    """Requests of all kinds, each checked."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._numbers = iter(range(count))
        self._large = os.urandom(600_000)
        self.right: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lost = 0

    async def client(self) -> None:
        """Send one after the other, until all are sent."""
        async with AsyncExitStack() as stack:
            connection: Connection | None = None
            for number in self._numbers:
                while True:
                    try:
                        if connection is None:
                            connection = await stack.enter_async_context(connected(self._port))
                        await self._ask(connection, number)
                        break
                    except Lost:
                        self.lost += 1
                        connection = None
                        await asyncio.sleep(0.01)

    async def _ask(self, connection: Connection, number: int) -> None:
        kind = ("json", "bytes", "stream", "chat")[number % 4]
        if kind == "json":
            answer = await connection.ask("/inference", json.dumps({"number": number}).encode())
            right = answer.status == 200 and json.loads(answer.body) == {"number": number}
        elif kind == "bytes":
            # Both sides of the size from which on bodies go through shared memory; each different at every place.
            begin = random.randrange(len(self._large) // 2)
            body = str(number).encode() + self._large[begin : begin + random.choice((100, 30_000, 70_000, 300_000))]
            answer = await connection.ask("/bytes", body)
            right = answer.status == 200 and answer.body == body
        elif kind == "stream":
            events = number % 7 + 1
            answer = await connection.ask("/count", str(events).encode())
            right = answer.status == 200 and answer.body.decode() == "".join(f"data: {n}\n\n" for n in range(events))
        else:
            said = {"model": "echo", "messages": [{"role": "user", "content": f"number {number}"}]}
            answer = await connection.ask("/v1/chat/completions", json.dumps(said).encode())
            content = json.loads(answer.body) if answer.status == 200 else None
            right = content is not None and content["choices"][0]["message"]["content"] == f"number {number}"
        if right:
            self.right[kind] += 1
        else:
            self.wrong.append(f"{kind} {number}: {answer.status} {answer.text[:80]}")


def roles(server: RunningServer) -> dict[str, list[int]]:
    """Return the processes of a service by what they are for."""
    leader = server.process.pid
    found: dict[str, list[int]] = {"engine": [leader], "web": [], "worker": [], "other": []}
    command = (processes.PROC / str(leader) / "cmdline").read_bytes()
    stats = processes.members(leader)
    copies = {pid for pid in stats if pid != leader and _command(pid) == command}
    for pid, stat in stats.items():
        if pid in copies:
            # The process from which web processes are forked is a copy of the program as well, and does nothing.
            found["web" if stat.parent in copies else "other"].append(pid)
        elif pid != leader:
            found["other" if b"resource_tracker" in _command(pid) else "worker"].append(pid)
    return found


def _command(pid: int) -> bytes:
    try:
        return (processes.PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


async def kill_web_processes(server: RunningServer, seconds: float) -> int:
    """Kill one web process after the other, until cancelled; return how many."""
    kills = 0
    try:
        while True:
            await asyncio.sleep(seconds * random.uniform(0.5, 1.5))
            if web := roles(server)["web"]:
                os.kill(random.choice(web), signal.SIGKILL)
                kills += 1
    except (asyncio.CancelledError, ProcessLookupError):
        return kills


async def besiege(server: RunningServer, count: int) -> tuple[Requests, int]:
    """Send all requests while web processes are killed."""
    requests = Requests(server.port, count)
    killing = asyncio.create_task(kill_web_processes(server, KILL_SECONDS))
    await asyncio.gather(*(requests.client() for _ in range(CLIENTS)))
    killing.cancel()
    return requests, await killing


def gauges(server: RunningServer) -> dict[str, float]:
    """Return what must be zero when nothing is on its way."""
    text = server.ask("GET", "/metrics")[1].decode()
    names = ("remaining_task", "shared_memory_bytes", "queue_length", "tasks_in_flight", "slots_in_use", "streams_open")
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.partition("{")[0] in {f"mosec_service_{each}" for each in names}:
            found[name] = float(value)
    return found


def proportional_bytes(pids: Sequence[int]) -> int:
    """Return the memory of processes, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        for line in (processes.PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def kills(count: int) -> list[str]:
    """Run the part; return what is wrong."""
    wrong: list[str] = []
    parts: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        server = servers.start("several_web", Checkout("two web processes", HERE, variables=WEB), Path(folder))
        try:
            servers._wait_ready(server)
            workers = set(roles(server)["worker"])
            began = time.monotonic()
            requests, killed = asyncio.run(besiege(server, count))
            seconds = time.monotonic() - began
            answered = requests.right.total()
            print(f"{answered} requests answered right in {seconds:.0f} s: {dict(requests.right)}; {killed} kills")
            print(f"{requests.lost} connections died with their processes, and the requests were sent again")
            wrong += requests.wrong[:10]
            if answered != count or not killed:
                wrong.append(f"{answered} of {count} answered right, {killed} kills")
            end = time.monotonic() + REST_SECONDS
            while any(left := gauges(server).values()) and time.monotonic() < end:
                time.sleep(0.1)
            if any(left):
                wrong.append(f"gauges are not back at zero: {gauges(server)}")
            if set(roles(server)["worker"]) != workers or len(workers) != MODELS:
                wrong.append("workers have been replaced, or are more than were defined")
            parts = roles(server)
            sizes = {role: proportional_bytes(pids) >> 20 for role, pids in parts.items()}
            print(f"memory in MiB, of which one model takes {MODEL_BYTES >> 20}: {sizes}")
            if sizes["web"] + sizes["engine"] > sizes["worker"] + len(parts["web"]) * (MODEL_BYTES >> 21):
                wrong.append("web processes take as much memory as if they had models")
        finally:
            server.process.terminate()
            server.process.wait(servers.SECONDS_TO_STOP * 3)
            # The one that `multiprocessing` keeps beside the program ends just after it.
            time.sleep(1.0)
            if remain := [pid for pid in itertools.chain.from_iterable(parts.values()) if _command(pid)]:
                wrong.append(f"processes are left: {remain}")
            servers.stop([server])
    return wrong


# -- cost ------------------------------------------------------------------------------------------------------------


class Used(NamedTuple):
    """What a load has brought, and taken of the processor for a request, in microseconds, by role."""

    per_second: float
    microseconds: dict[str, float]


def measured(server: RunningServer, kind: Kind, seconds: int) -> Used:
    """Put the load on a service."""
    pids = roles(server)
    before = {role: sum(processes.read_stat(pid).own for pid in each) for role, each in pids.items()}
    done = kind.load.put_on(server.url, kind.connections, seconds)
    spent = {role: sum(processes.read_stat(pid).own for pid in each) - before[role] for role, each in pids.items()}
    return Used(done.per_second, {role: took / done.done * 1e6 for role, took in spent.items() if role != "other"})


def cost(rounds: int, seconds: int) -> list[str]:
    """Run the part; return what is wrong."""
    wrong: list[str] = []
    for kind in KINDS:
        kind.load.check()
        checkouts = [Checkout("one process", HERE), Checkout("two web processes", HERE, variables=WEB)]
        with servers.running(kind.service, checkouts, kind.load) as running:
            for server in running:
                measured(server, kind, 1)
            seen: list[list[Used]] = [[], []]
            for _ in range(rounds):
                for server, rows in zip(running, seen, strict=True):
                    rows.append(measured(server, kind, seconds))
        print(f"{kind.name}, {kind.connections} connections")
        for server, rows in zip(running, seen, strict=True):
            median = statistics.median(row.per_second for row in rows)
            parts = {role: statistics.median(row.microseconds[role] for row in rows) for role in rows[0].microseconds}
            told = ", ".join(f"{role} {took:.1f}" for role, took in parts.items() if took)
            print(f"  {server.name:<18} {median:9.0f} req/s; µs of processor time a request: {told}")
        share = statistics.median(two.per_second / one.per_second for one, two in zip(*seen, strict=True))
        engine = statistics.median(row.microseconds["engine"] for row in seen[1])
        alone = statistics.median(row.microseconds["engine"] for row in seen[0])
        print(
            f"  {share:.2f} of one process here; with enough cores the engine's own bound is {1e6 / engine:.0f} req/s,"
        )
        print(f"  {alone / engine:.1f} times that of one process\n")
        if kind.share is not None and share < kind.share:
            load = f"{kind.name}, {kind.connections} connections"
            wrong.append(f"{load}: {share:.2f} of one process's requests a second, below {kind.share}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit status."""
    options = _parser().parse_args(arguments)
    if not processes.KNOWN:
        print("this needs Linux's /proc", file=sys.stderr)
        return 2
    try:
        wrong = [] if options.only == "cost" else kills(options.requests)
        wrong += [] if options.only == "kills" else cost(options.rounds, options.seconds)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    for each in wrong:
        print(f"wrong: {each}", file=sys.stderr)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("kills", "cost"), help="one part alone")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"of the part kills (default {REQUESTS})")
    parser.add_argument("--rounds", type=int, default=5, help="of the part cost (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="of each load (default 3)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
