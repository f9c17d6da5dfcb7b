"""Workers whose requests are traced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Iterator
from typing import Any

from mosec_asgi import ContinuousWorker, SSEWorker, ValidationError, Worker, get_logger


class First(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Batched(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        if "bad" in data:
            raise ValueError("a bad item")
        if "wrong" in data:
            raise ValidationError("a wrong item")
        return data


class Async(Worker):
    async def forward(self, data: Any) -> Any:
        await asyncio.sleep(0)
        return data


class Spell(SSEWorker):
    def forward(self, data: str) -> Iterator[str]:
        yield from data


class SpellAsync(SSEWorker):
    async def forward(self, data: str) -> AsyncIterator[str]:
        for letter in data:
            yield letter


class Slots(ContinuousWorker):
    def __init__(self) -> None:
        self.left: dict[int, list[str]] = {}

    def admit(self, item: str) -> int:
        slot = min(set(range(8)) - self.left.keys())
        self.left[slot] = list(item)
        return slot

    def step(self) -> list[tuple[Hashable, Any]]:
        from mosec_asgi.streaming import FINISHED

        return [(slot, left.pop(0) if left else FINISHED) for slot, left in self.left.items()]

    def evict(self, slot: Hashable) -> None:
        del self.left[slot]  # type: ignore[arg-type]


class Tells(Worker):
    takes_request = True

    def forward(self, data: Any) -> Any:
        return self.request().traceparent


class Logs(Worker):
    def forward(self, data: Any) -> Any:
        get_logger().info("at work on %s", data)
        return data


class Naps(Worker):
    def forward(self, data: Any) -> Any:
        time.sleep(0.4)
        return data


class NapsBatch(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        time.sleep(0.4)
        get_logger().info("slept for %d", len(data))
        return data
