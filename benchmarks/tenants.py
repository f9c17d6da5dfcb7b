"""What a light tenant feels of a heavy one, with real workers: `make tenants`.

Calls come at random, as many a second as are said and whether or not earlier ones are answered (an open loop, Poisson).
One tenant sends ten times as many as the other; together they are parts of what the workers can do, and half as much
again. The light tenant's calls come at the same times alone, beside the heavy one's, and beside them without tenants.
What is possible at best is found by simulation: `python -m policies --tenants`. The calls are made by `server.infer`,
on the server's own event loop: there is no client that needs a processor of its own. Messages to workers and back,
which the simulation leaves out, count here.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from mosec_asgi import MosecError, Server, Worker

LOADS = (0.55, 0.8, 0.95, 1.5)
HEAVIER = 10
SECONDS_PER_CALL = 0.01
BATCH = 16
SECONDS_PER_BATCH, SECONDS_PER_ITEM = 0.005, 0.001
WARM_UP_SECONDS = 3.0
TIMEOUT_MS = 2000
LIGHT, HEAVY = "light", "heavy"


class Model(Worker):
    """Answers after a model's time; it sleeps, as one on a GPU takes no processor."""

    def forward(self, data: Any) -> Any:
        """Return the item after a call's time."""
        time.sleep(SECONDS_PER_CALL)
        return data


class Batches(Worker):
    """The same, of batches."""

    def forward(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return the batch after a batch's time."""
        time.sleep(SECONDS_PER_BATCH + SECONDS_PER_ITEM * len(data))
        return data


# The worker, the settings of its stage, and the calls a second that it can do.
LAYOUTS: dict[str, tuple[type[Worker], dict[str, Any], float]] = {
    "one worker": (Model, {"num": 1}, 1 / SECONDS_PER_CALL),
    "8 workers": (Model, {"num": 8}, 8 / SECONDS_PER_CALL),
    "batches of 16": (
        Batches,
        {"num": 1, "max_batch_size": BATCH},
        BATCH / (SECONDS_PER_BATCH + SECONDS_PER_ITEM * BATCH),
    ),
}


async def offer(server: Server, rates: Mapping[str, float], seconds: float, *, named: bool) -> list[float | int]:
    """Make calls at random for a time.

    Args:
        server: that is called.
        rates: calls a second of each tenant.
        seconds: for how long, after the first moments.
        named: the server is told which tenant a call belongs to.

    Returns:
        the seconds that each of the light tenant's calls took, or the status of one that was not answered well.
    """
    took: list[float | int] = []
    began = time.monotonic()

    async def call(tenant: str, due: float) -> None:
        code = 0
        try:
            await server.infer(1, tenant=tenant if named else "")
        except MosecError as error:
            if error.code not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT):
                raise
            code = error.code
        if tenant == LIGHT and due > began + WARM_UP_SECONDS:
            took.append(code or time.monotonic() - due)

    async def send(tenant: str, rate: float) -> None:
        # Of each tenant's own, so that the calls of one are the same whatever the others do.
        chance, due, calls = random.Random(tenant), began, set[asyncio.Task[None]]()
        while (due := due + chance.expovariate(rate)) < began + WARM_UP_SECONDS + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(call(tenant, due))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)

    await asyncio.gather(*(send(tenant, rate) for tenant, rate in rates.items()))
    return took


async def measure(layout: str, rates: Mapping[str, float], seconds: float, *, named: bool) -> list[float | int]:
    """Return what `offer` does, of a service of its own."""
    worker, settings, _ = LAYOUTS[layout]
    server = Server(timeout=TIMEOUT_MS, log_level="error")
    server.append_worker(worker, **settings)
    async with server:
        return await offer(server, rates, seconds, named=named)


def p99(took: Sequence[float | int]) -> float:
    """Return the 99th percentile of those that were answered well, in milliseconds."""
    answered = sorted(seconds for seconds in took if isinstance(seconds, float))
    return 1000 * answered[int(0.99 * len(answered))] if answered else float("nan")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code: 1 where a call of the light tenant was refused."""
    parser = argparse.ArgumentParser(description="Offer growing loads of two tenants to workers.")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each load (default: %(default)s)")
    options = parser.parse_args(arguments)
    refused = False
    for layout in options.layouts:
        print(f"{layout}: the light tenant's p99 in ms alone, beside ten times its load, and the same without tenants")
        for load in options.loads:
            light = load * LAYOUTS[layout][2] / (1 + HEAVIER)
            both = {LIGHT: light, HEAVY: HEAVIER * light}
            alone, ours, fifo = (
                asyncio.run(measure(layout, rates, options.seconds, named=named))
                for rates, named in (({LIGHT: light}, True), (both, True), (both, False))
            )
            lost = ours.count(HTTPStatus.TOO_MANY_REQUESTS)
            refused = refused or bool(lost)
            print(
                f"  {load:4.2f} of the capacity, {len(ours):5} calls:"
                f" {p99(alone):7.1f}  {p99(ours):7.1f}  {p99(fifo):7.1f}"
                f"   {p99(ours) / p99(alone):5.2f} times alone, {lost} refused, "
                f"{ours.count(HTTPStatus.REQUEST_TIMEOUT)} late",
                flush=True,
            )
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
