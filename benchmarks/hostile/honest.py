"""The honest client: a steady and moderate load on a quick model, whose latency is what an attack must not spoil."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from connection import Connection, Lost, connected

from hostile.judge import Latencies

# Requests a second, all connections together. The model could do 400.
RATE = 80.0
CONNECTIONS = 8
BODY = b'{"text": "the quick brown fox"}'


class Honest:
    """Asks at fixed times, whatever comes of what was asked before; a latency counts from when its request was due."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seconds: list[float] = []
        self._failures: Counter[str] = Counter()

    def take(self) -> Latencies:
        """Return what was measured since the last time."""
        taken = Latencies(self._seconds, dict(self._failures))
        self._seconds, self._failures = [], Counter()
        return taken

    async def over(self, seconds: float) -> Latencies:
        """Return what is measured in some seconds from now on."""
        self.take()
        await asyncio.sleep(seconds)
        return self.take()

    async def client(self, number: int) -> None:
        """Ask on one connection until cancelled."""
        pause = CONNECTIONS / RATE
        due = time.monotonic() + pause * number / CONNECTIONS
        while True:
            try:
                async with connected(self._port) as connection:
                    while True:
                        await asyncio.sleep(due - time.monotonic())
                        await self._ask(connection, due)
                        # What was due meanwhile is asked at once: nobody's wait is left out.
                        due += pause
            except Lost as error:
                self._failures[f"its connection was lost {error}"] += 1
                due = time.monotonic() + pause

    async def _ask(self, connection: Connection, due: float) -> None:
        answer = await connection.ask("/inference", BODY)
        if answer.status == 200:
            self._seconds.append(time.monotonic() - due)
        else:
            self._failures[f"it was answered {answer.status} {answer.text[:80]}"] += 1


@contextlib.asynccontextmanager
async def asking(port: int) -> AsyncIterator[Honest]:
    """Have an honest client ask for the time of a block."""
    honest = Honest(port)
    clients = [asyncio.ensure_future(honest.client(number)) for number in range(CONNECTIONS)]
    try:
        yield honest
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
