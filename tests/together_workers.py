"""One model that is reached by three protocols: in threads of this process, or in processes."""

from __future__ import annotations

import time
from typing import Any

from mosec_asgi import Server, Worker
from mosec_asgi.protocols import OpenAI, OpenInference, Tensor


class Embed(Worker):
    """A vector of a text: its length, and how many texts were in the batch. Knows nothing of who asks."""

    inputs = Tensor("text", "BYTES", [-1], text=True)
    outputs = Tensor("vector", "FP32", [-1, 2])

    def forward(self, data: list[str]) -> list[Any]:
        time.sleep(0.02)
        return [[float(len(text)), float(len(data))] for text in data]


def serve(**v2: Any) -> tuple[Server, OpenInference]:
    """Return a server, and its protocol of tensors."""
    server = Server(timeout=20_000)
    server.append_worker(Embed, max_batch_size=64, max_wait_time=20, route="/embed", executor="thread")
    server.add_protocol(OpenAI(embeddings={"lengths": "/embed"}))
    tensors = OpenInference({"lengths": "/embed"}, **v2)
    server.add_protocol(tensors)
    return server, tensors
