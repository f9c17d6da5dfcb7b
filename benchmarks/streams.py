"""What a client of a stream feels: `make streams`, or `python benchmarks/streams.py --rounds 3`.

Two workers with 16 slots each, whose steps take 20 ms (`services/steps.py`), and one asynchronous worker. Each row is
the median over the rounds; the exit status is 1 where one does not keep its promise. It needs a machine that does
nothing else: a step is 20 ms here only if the worker is woken in time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import servers
from connection import Connection, connected
from problems import BenchmarkError

ROUNDS = 5
# That of `services/steps.py`.
STEP_SECONDS = 0.02
STEP_MS = STEP_SECONDS * 1000
SLOTS = 32
EVENTS = 100
SILENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """A promise and what was measured; both in milliseconds."""

    what: str
    measured: float
    most: float

    @property
    def kept(self) -> bool:
        """Whether the promise was kept."""
        return self.measured <= self.most


@dataclass(slots=True)
class Stream:
    """One stream as its client saw it, by `time.perf_counter`: when it was asked for, and when each event came."""

    began: float
    times: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds from the request to the first event."""
        return self.times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        """Seconds between events."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description="Measure what clients of streams feel.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    with servers.alone("steps") as server:
        rounds = [asyncio.run(_round(server.port)) for _ in range(options.rounds)]
    rows = [
        Row(same[0].what, statistics.median(row.measured for row in same), same[0].most)
        for same in zip(*rounds, strict=True)
    ]
    print(f"{'what':86}  {'ms':>8}  {'at most':>8}")
    for row in rows:
        print(f"{row.what:86}  {row.measured:8.1f}  {row.most:8.1f}{'' if row.kept else '  BROKEN'}")
    return 0 if all(row.kept for row in rows) else 1


async def _round(port: int) -> list[Row]:
    rows = []
    for path, name in (("/slots", "continuous"), ("/batch", "static")):
        together = await _together(port, path, SLOTS)
        off = abs(_median_gap(together) - STEP_MS)
        rows += [
            Row(f"32 {name} streams at once: median time to the first event", _median_first(together), 2 * STEP_MS),
            Row(f"32 {name} streams at once: median gap, its distance from a step", off, 2),
        ]
    rows += await _beside_a_silent_reader(port)
    rows.append(await _after_one_that_leaves(port))
    for path, name in (("/waits", "requests"), ("/waits-batch", "requests in batches of 8")):
        rows.append(Row(f"64 asynchronous {name} of 200 ms in one process: all done", await _waits(port, path), 600))
    return rows


async def _together(port: int, path: str, count: int) -> list[Stream]:
    """Ask for `count` streams at once, over connections that are open already, and read all of them."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(port)) for _ in range(count)]
        return await asyncio.gather(*[_read(connection, path, EVENTS) for connection in connections])


async def _read(connection: Connection, path: str, events: int) -> Stream:
    """Ask for a stream and read it to its end; it must have as many events as asked for."""
    stream = Stream(time.perf_counter())
    await connection.send(path, _body(events))
    async for part in connection.receive_parts():
        # Each event of these services is one line of data.
        stream.times += [time.perf_counter()] * part.count(b"data: ")
    if len(stream.times) != events:
        raise BenchmarkError(f"a stream of {path} had {len(stream.times)} events instead of {events}")
    return stream


async def _stream(port: int, path: str, events: int) -> Stream:
    """Read a stream over a connection of its own."""
    async with connected(port) as connection:
        return await _read(connection, path, events)


async def _beside_a_silent_reader(port: int) -> list[Row]:
    """Let one of 16 readers read nothing for 5 s, of a stream that is more than all buffers hold."""
    events = int(SILENT_SECONDS / STEP_SECONDS)
    alone = await asyncio.gather(*[_stream(port, "/slots", events) for _ in range(15)])
    async with connected(port) as silent:
        await silent.send("/slots", _body(events, size=100_000))
        others = await asyncio.gather(*[_stream(port, "/slots", events) for _ in range(15)])
    worse = _median_gap(others) - _median_gap(alone)
    longest = [statistics.quantiles([gap for one in group for gap in one.gaps], n=100)[98] for group in (alone, others)]
    return [
        Row("15 streams beside one that is not read for 5 s: what that adds to their median gap", worse, 1),
        Row("the same: what it adds to the 99th percentile", (longest[1] - longest[0]) * 1000, 5),
    ]


async def _after_one_that_leaves(port: int) -> Row:
    """Take all slots, let one client leave after the first of its events, and ask for the slot anew."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(SLOTS):
            connection = await stack.enter_async_context(connected(port))
            await connection.send("/slots", _body(1000))
            parts = connection.receive_parts()
            await anext(parts)
        # The last one leaves.
        await connection.close()
        began = time.perf_counter()
        await _stream(port, "/slots", 1)
        took = (time.perf_counter() - began) * 1000
    return Row("after a client that left, all slots being taken: the next request's only event", took, 3 * STEP_MS)


async def _waits(port: int, path: str) -> float:
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(port)) for _ in range(64)]
        began = time.perf_counter()
        answers = await asyncio.gather(*[connection.ask(path, b"1") for connection in connections])
        took = (time.perf_counter() - began) * 1000
    if {answer.status for answer in answers} != {200}:
        raise BenchmarkError(f"{path} was answered {sorted({answer.status for answer in answers})}")
    return took


def _body(events: int, size: int = 8) -> bytes:
    return json.dumps({"count": events, "size": size}).encode()


def _median_first(group: Sequence[Stream]) -> float:
    return statistics.median(one.first for one in group) * 1000


def _median_gap(group: Sequence[Stream]) -> float:
    return statistics.median(gap for one in group for gap in one.gaps) * 1000


if __name__ == "__main__":
    sys.exit(main())
