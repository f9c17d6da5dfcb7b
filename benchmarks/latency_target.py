"""What a `latency_target` keeps of its promise with real workers: `make latency-target`.

Calls come at random, as many a second as are said and whether or not earlier ones are answered (an open loop, Poisson),
to workers whose batches take 5 ms and 1 ms more for each item. The loads are parts of what is possible at the target:
the most at which the best fixed batch size keeps 99 of 100 calls within it, as `python -m policies --targets` finds by
simulation. The calls are made by `server.infer`, on the server's own event loop: there is no client that needs a
processor of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from mosec_asgi import MosecError, Server, Worker

TARGET_MS = 50
SECONDS_PER_BATCH = 0.005
SECONDS_PER_ITEM = 0.001
# Calls a second for each worker that are possible at the target, by the number of workers.
POSSIBLE = {1: 680, 2: 740, 4: 800}
PARTS = (0.5, 0.7, 0.9, 0.95)
# Until so much of the possible rate, 99 of 100 calls are to be within so many times the target.
UNTIL = 0.95
BAR = 1.3
WARM_UP_SECONDS = 3.0


class Model(Worker):
    """Answers what it is asked, after a model's time; it sleeps, as one on a GPU takes no processor."""

    def forward(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return the batch after a batch's time."""
        time.sleep(SECONDS_PER_BATCH + SECONDS_PER_ITEM * len(data))
        return data


async def offer(server: Server, rate: float, seconds: float) -> list[float | None]:
    """Make calls at random for a time.

    Returns:
        the seconds that each took, without those of the first moments; None for one that was refused.
    """
    took: list[float | None] = []
    chance = random.Random(7)
    began = time.monotonic()

    async def call(due: float) -> None:
        refused = False
        try:
            await server.infer(1)
        except MosecError as error:
            if error.code != HTTPStatus.TOO_MANY_REQUESTS:
                raise
            refused = True
        if due > began + WARM_UP_SECONDS:
            took.append(None if refused else time.monotonic() - due)

    due, calls = began, set[asyncio.Task[None]]()
    while due < began + WARM_UP_SECONDS + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(call(due))
        calls.add(task)
        task.add_done_callback(calls.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*calls)
    return took


async def measure(workers: int, target: int, rate: float, seconds: float) -> list[float | None]:
    """Return what `offer` does, of a service of its own."""
    server = Server(timeout=10_000, log_level="error")
    server.append_worker(Model, num=workers, max_batch_size=128, latency_target=target)
    async with server:
        return await offer(server, rate, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Offer growing loads to workers with a latency target.")
    parser.add_argument("--workers", type=int, nargs="+", choices=POSSIBLE, default=[1, 4], help="default: 1 and 4")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each load (default: %(default)s)")
    options = parser.parse_args(arguments)
    missed = False
    for workers in options.workers:
        print(f"{workers} workers, 5 ms + 1 ms an item, latency_target={TARGET_MS} ms and without")
        for part in PARTS:
            rate = part * POSSIBLE[workers] * workers
            told = f"  {part:4.0%} of the possible rate, {rate:5,.0f}/s:"
            for target in (TARGET_MS, 0):
                took = asyncio.run(measure(workers, target, rate, options.seconds))
                answered = sorted(seconds for seconds in took if seconds is not None)
                p50, p99 = (1000 * answered[int(share * len(answered))] for share in (0.5, 0.99))
                told += f"  p50 {p50:5.1f} ms  p99 {p99:5.1f} ms  {1 - len(answered) / len(took):6.2%} refused"
                if target and part <= UNTIL and p99 > BAR * TARGET_MS:
                    told, missed = told + " MISSED", True
            print(told, flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
