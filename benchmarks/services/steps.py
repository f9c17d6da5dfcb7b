"""Streams of steps of 20 ms: in the slots of two continuous workers, and in batches of two that stream by a generator.

`/waits` is an asynchronous worker that waits 200 ms for each of its requests, and `/waits-batch` for each batch of 8.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mosec_asgi import ContinuousWorker, Server, SSEWorker, Worker

STEP_SECONDS = 0.02
WAIT_SECONDS = 0.2


class Slots(ContinuousWorker):
    """Events in slots: a request says how many it wants, and how long each is."""

    def __init__(self) -> None:
        self.left: dict[int, tuple[int, str]] = {}

    def admit(self, item: dict[str, int]) -> int:
        """Take the first free slot."""
        slot = min(set(range(self.max_batch_size)) - self.left.keys())
        self.left[slot] = (item["count"], "x" * item.get("size", 8))
        return slot

    def step(self) -> Iterator[tuple[int, Any]]:
        """Give one event for each slot, after a step's time."""
        time.sleep(STEP_SECONDS)
        for slot, (count, text) in self.left.items():
            self.left[slot] = (count - 1, text)
            yield slot, text
            if count == 1:
                yield slot, self.FINISHED

    def evict(self, slot: int) -> None:
        """Free a slot."""
        del self.left[slot]


class Batch(SSEWorker):
    """The same in static batches."""

    def forward(self, data: Sequence[dict[str, int]]) -> Iterator[list[Any]]:
        """Give one event for each item, after a step's time."""
        for step in range(max(item["count"] for item in data)):
            time.sleep(STEP_SECONDS)
            yield ["x" * item.get("size", 8) if step < item["count"] else None for item in data]


class Waits(Worker):
    """Waits."""

    async def forward(self, data: Any) -> Any:
        """Return the item, or the batch, after 200 ms."""
        await asyncio.sleep(WAIT_SECONDS)
        return data


if __name__ == "__main__":
    server = Server(timeout=60_000)
    server.append_worker(Slots, num=2, max_batch_size=16, route="/slots")
    server.append_worker(Batch, num=2, max_batch_size=16, max_wait_time=20, route="/batch")
    server.append_worker(Waits, concurrency=64, route="/waits")
    server.append_worker(Waits, concurrency=64, max_batch_size=8, route="/waits-batch")
    server.run()
