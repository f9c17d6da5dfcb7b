"""Changes of a service under load: `make changes`, or `python benchmarks/changes.py --times 3 --only restart`.

Requests come by chance (Poisson) at 0.8 of what the fewest workers of a part can do, whether earlier ones are answered
or not. Meanwhile the stage is restarted, the program is sent SIGHUP, batches of other sizes are asked for, and workers
are scaled from two to four, to one and back: each so many times at least, one change after the other, and until enough
calls have come. No call may fail, each answer must be that of its request, and a rolling restart may raise the 99th
percentile to three times what it was before at most. The exit status is 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import servers
from connection import Connection, Lost, connected

from mosec_asgi.cli.ctl import Client

STAGE = "Model_1"
BATCH = 4
# What a worker can do in a second: full batches of the service's model.
PER_WORKER = BATCH / 0.05
SHARE = 0.8
TIMES = 20
CALM_SECONDS = 20.0
LEAST_CALLS = 20_000
MOST_TIMES_SLOWER = 3.0
WAIT_SECONDS = 60.0


@dataclass(slots=True)
class Seen:
    """What clients saw of a part.

    Attributes:
        seconds: of each call that was answered well.
        failures: what else came, and how often.
        changes: that were made.
    """

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    changes: int = 0

    @property
    def calls(self) -> int:
        """All calls."""
        return len(self.seconds) + self.failures.total()

    def milliseconds(self, share: float) -> float:
        """Return the latency that so many took at most."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


class Load:
    """Requests that come by chance, at a rate."""

    def __init__(self, port: int, seed: int = 1) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._idle: list[Connection] = []
        # Closes all connections at the end.
        self._open = contextlib.AsyncExitStack()

    async def close(self) -> None:
        """Close all connections."""
        await self._open.aclose()

    async def during(self, rate: float, work: Awaitable[int], seen: Seen) -> None:
        """Load the service as long as some work takes, which returns the changes that it has made."""
        calls = set[asyncio.Task[None]]()
        working = asyncio.ensure_future(work)
        due = time.monotonic()
        while not working.done():
            due += self._random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            call = asyncio.create_task(self._call(seen))
            calls.add(call)
            call.add_done_callback(calls.discard)
        seen.changes = await working
        if calls:
            await asyncio.wait(calls)

    async def _call(self, seen: Seen) -> None:
        item = {"number": next(self._numbers)}
        began = time.monotonic()
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = await self._open.enter_async_context(connected(self._port))
        try:
            answer = await connection.ask("/inference", json.dumps(item).encode())
        except Lost as error:
            seen.failures[f"lost: {error}"] += 1
            return
        self._idle.append(connection)
        if answer.status != 200:
            seen.failures[f"{answer.status} {answer.text[:40]}"] += 1
        elif json.loads(answer.body) != item:
            seen.failures["the answer to another request"] += 1
        else:
            seen.seconds.append(time.monotonic() - began)


class Changes:
    """What is done to the service, by its admin socket and by signals."""

    def __init__(self, client: Client, process: int, times: int) -> None:
        self._client = client
        self._process = process
        self._times = times
        # What clients have seen of the part that is under way.
        self.seen = Seen()

    def _are_missing(self, done: int) -> bool:
        """Whether more are to be made, after so many."""
        return done < self._times or self.seen.calls < LEAST_CALLS / 4 * min(1.0, self._times / TIMES)

    async def none(self) -> int:
        """Leave it in peace, for a while."""
        await asyncio.sleep(CALM_SECONDS * min(1.0, self._times / TIMES))
        return 0

    async def scale(self) -> int:
        """Have four workers, one, and two again."""
        done = 0
        while self._are_missing(done):
            for num in (4, 1, 2):
                await self._ask("/scale", num=num)
            done += 1
        return 3 * done

    async def restart(self) -> int:
        """Replace both workers."""
        done = 0
        while self._are_missing(done):
            await self._ask("/restart")
            done += 1
        return done

    async def configure(self) -> int:
        """Have batches of eight, and of four again."""
        done = 0
        while self._are_missing(done):
            for size in (2 * BATCH, BATCH):
                await self._ask("/configure", max_batch_size=size)
            done += 2
        return done

    async def hangup(self) -> int:
        """Send SIGHUP, and wait until other processes serve."""
        done = 0
        while self._are_missing(done):
            before = await self._workers()
            os.kill(self._process, signal.SIGHUP)
            end = time.monotonic() + WAIT_SECONDS
            while (await self._workers()) & before:
                if time.monotonic() > end:
                    raise RuntimeError("the workers were not replaced after SIGHUP")
                await asyncio.sleep(0.1)
            done += 1
        return done

    async def _ask(self, path: str, **fields: Any) -> None:
        await asyncio.to_thread(self._client.ask, "POST", path, {"stage": STAGE, **fields})

    async def _workers(self) -> set[str]:
        told = await asyncio.to_thread(self._client.ask, "GET", "/status")
        return {worker["name"] for worker in told["stages"][0]["workers"]}


async def measure(port: int, client: Client, process: int, times: int, only: Sequence[str]) -> dict[str, Seen]:
    """Return what clients saw of each part."""
    load, changes = Load(port), Changes(client, process, times)
    # The fewest workers of each part decide how much load that is.
    parts: dict[str, tuple[int, Callable[[], Awaitable[int]]]] = {
        "none": (2, changes.none),
        "restart": (2, changes.restart),
        "SIGHUP": (2, changes.hangup),
        "configure": (2, changes.configure),
        "scale": (1, changes.scale),
    }
    seen = {}
    for name, (workers, work) in parts.items():
        if name == "none" or not only or name in only:
            seen[name] = changes.seen = Seen()
            await load.during(SHARE * workers * PER_WORKER, work(), seen[name])
            print(_row(name, seen[name]), flush=True)
    await load.close()
    return seen


def _row(name: str, seen: Seen) -> str:
    return (
        f"| {name:<9} | {seen.changes:>7} | {seen.calls:>7,} | {seen.failures.total():>6} | "
        f"{seen.milliseconds(0.5):>7.1f} | {seen.milliseconds(0.99):>7.1f} | {seen.milliseconds(1.0):>7.1f} |"
    )


def broken(seen: dict[str, Seen], *, least_calls: int) -> list[str]:
    """Return what does not hold."""
    found = [f"{name}: {count} x {what}" for name, part in seen.items() for what, count in part.failures.items()]
    calls = sum(part.calls for part in seen.values())
    if calls < least_calls:
        found.append(f"only {calls} calls, and {least_calls} are wanted")
    before = seen["none"].milliseconds(0.99)
    for name in ("restart", "SIGHUP"):
        if name in seen and (p99 := seen[name].milliseconds(0.99)) > MOST_TIMES_SLOWER * before:
            found.append(f"{name}: 99 % within {p99:.1f} ms, and within {before:.1f} ms before")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=TIMES, help=f"of each change (default: {TIMES})")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="restart, SIGHUP, configure or scale")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="changes") as folder:
        path = str(Path(folder) / "admin.sock")
        os.environ["CHANGED_SOCKET"] = path
        print("| change    | changes |   calls | failed | p50, ms | p99, ms | most, ms |")
        print("|---|---|---|---|---|---|---|")
        with servers.alone("changed") as server:
            port, process = server.port, server.process.pid
            seen = asyncio.run(measure(port, Client(path), process, options.times, options.only))
    whole = options.times >= TIMES and not options.only
    found = broken(seen, least_calls=LEAST_CALLS if whole else 1)
    for line in found:
        print(line)
    print(f"{sum(part.calls for part in seen.values()):,} calls; {'broken' if found else 'all holds'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
