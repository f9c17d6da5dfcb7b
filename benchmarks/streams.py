"""What a client of a stream feels: `make streams`, or `python benchmarks/streams.py --rounds 3`.

Two workers with 16 slots each, whose steps take 20 ms (`services/steps.py`), and one asynchronous worker. Each row is
the median over the rounds; the exit status is 1 where one does not keep its promise. It needs a machine that does
nothing else: a step is 20 ms here only if the worker is woken in time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import servers
from stream_client import Connection, Stream, stream

ROUNDS = 5
# That of `services/steps.py`.
STEP_SECONDS = 0.02
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
    step = STEP_SECONDS * 1000
    rows = []
    for path, name in (("/slots", "continuous"), ("/batch", "static")):
        together = await _together(port, path, 32)
        off = abs(_median_gap(together) - step)
        rows += [
            Row(f"32 {name} streams at once: median time to the first event", _median_first(together), 2 * step),
            Row(f"32 {name} streams at once: median gap, its distance from a step", off, 2),
        ]
    rows += await _beside_a_silent_reader(port)
    rows.append(await _after_one_that_leaves(port))
    for path, name in (("/waits", "requests"), ("/waits-batch", "requests in batches of 8")):
        rows.append(Row(f"64 asynchronous {name} of 200 ms in one process: all done", await _waits(port, path), 600))
    return rows


async def _together(port: int, path: str, count: int) -> list[Stream]:
    """Send `count` requests at once over connections that are open already; read all streams."""
    connections = [await Connection.open(port) for _ in range(count)]
    try:
        asked = await asyncio.gather(*[connection.ask(path, {"count": EVENTS}) for connection in connections])
        pairs = zip(connections, asked, strict=True)
        return await asyncio.gather(*[connection.read(one) for connection, one in pairs])
    finally:
        for connection in connections:
            connection.close()


async def _beside_a_silent_reader(port: int) -> list[Row]:
    """Let one of 16 readers read nothing for 5 s, of a stream that is more than all buffers hold."""
    events = int(SILENT_SECONDS / STEP_SECONDS)
    alone = await asyncio.gather(*[stream(port, "/slots", {"count": events}) for _ in range(15)])
    silent = await Connection.open(port)
    await silent.ask("/slots", {"count": events, "size": 100_000})
    others = await asyncio.gather(*[stream(port, "/slots", {"count": events}) for _ in range(15)])
    silent.close()
    worse = _median_gap(list(others)) - _median_gap(list(alone))
    longest = [statistics.quantiles([gap for one in group for gap in one.gaps], n=100)[98] for group in (alone, others)]
    return [
        Row("15 streams beside one that is not read for 5 s: what that adds to their median gap", worse, 1),
        Row("the same: what it adds to the 99th percentile", (longest[1] - longest[0]) * 1000, 5),
    ]


async def _after_one_that_leaves(port: int) -> Row:
    """Take all slots but one, leave that one after the first of 1,000 events, and ask for it anew."""
    leaver = await Connection.open(port)
    await leaver.read(await leaver.ask("/slots", {"count": 1000}), events=1)
    leaver.close()
    began = time.perf_counter()
    await stream(port, "/slots", {"count": 1})
    return Row(
        "after a client that left in mid-stream: the next request's only event",
        (time.perf_counter() - began) * 1000,
        3 * STEP_SECONDS * 1000,
    )


async def _waits(port: int, path: str) -> float:
    connections = [await Connection.open(port) for _ in range(64)]
    began = time.perf_counter()
    asked = [await connection.ask(path, 1) for connection in connections]
    await asyncio.gather(*[one.read(two) for one, two in zip(connections, asked, strict=True)])
    for connection in connections:
        connection.close()
    return (time.perf_counter() - began) * 1000


def _median_first(group: Sequence[Stream]) -> float:
    return statistics.median(one.first for one in group) * 1000


def _median_gap(group: Sequence[Stream]) -> float:
    return statistics.median(gap for one in group for gap in one.gaps) * 1000


if __name__ == "__main__":
    sys.exit(main())
