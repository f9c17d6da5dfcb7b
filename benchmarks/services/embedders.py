"""Embedders behind plain routes and OpenAI's API: one that takes no time, and one of 5 ms and 0.1 ms for each text."""

from __future__ import annotations

import time

from mosec_asgi import Server, Worker
from mosec_asgi.protocols import OpenAI

VECTOR = [0.25, 0.5, 0.75]


class Quick(Worker):
    """Answers at once."""

    def forward(self, data: str) -> list[float]:
        """Return the same vector for every text."""
        return VECTOR


class Model(Worker):
    """Takes its time, as a model does that runs on an accelerator."""

    def forward(self, data: list[str]) -> list[list[float]]:
        """Return for each text a vector of its length."""
        time.sleep(0.005 + 0.0001 * len(data))
        return [[float(len(text)), *VECTOR] for text in data]


server = Server(timeout=20_000)
server.append_worker(Quick, route="/inference")
server.append_worker(Model, max_batch_size=32, route="/model")
server.add_protocol(OpenAI(embeddings={"quick": "/inference", "model": "/model"}))

if __name__ == "__main__":
    server.run()
