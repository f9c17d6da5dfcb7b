"""A service that has something to show on its dashboard: two stages with batches, a stream, a worker that dies."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator

from mosec_asgi import Server, SSEWorker, ValidationError, Worker


class Tokenize(Worker):
    """The first stage: quick, and strict."""

    def forward(self, data: dict[str, str]) -> str:
        """Return the text."""
        if "text" not in data:
            raise ValidationError("'text' is missing")
        time.sleep(0.001)
        return data["text"]


class Classify(Worker):
    """The model, which batches make quicker."""

    def forward(self, data: list[str]) -> list[dict[str, str]]:
        """Return a label for each text; end the process where one says so."""
        if "die" in data:
            os._exit(3)
        time.sleep(0.015 + 0.002 * len(data) + random.random() * 0.01)
        return [{"label": "positive"} for _ in data]


class Write(SSEWorker):
    """A stream of two seconds."""

    async def forward(self, data: dict[str, str]) -> AsyncIterator[str]:
        """Yield numbers."""
        for number in range(20):
            yield str(number)
            await asyncio.sleep(0.1)


server = Server(title="Sentiment of texts", timeout=500, event_timeout=5000, dashboard=True, log_level="error")
server.append_worker(Tokenize, num=2, route="/v1/classify")
server.append_worker(Classify, num=2, max_batch_size=16, route="/v1/classify")
server.append_worker(Write, concurrency=50, route="/v1/write")

if __name__ == "__main__":
    server.run()
