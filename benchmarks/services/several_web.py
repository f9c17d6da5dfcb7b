"""A service of every kind of route, with a model of 64 MiB, for several web processes."""

import os
from typing import Any

from package import Server, Worker

from mosec_asgi import SSEWorker
from mosec_asgi.protocols import OpenAI

MODEL_BYTES = 64 << 20


class Echo(Worker):
    """Answers what it is asked, of a model that takes memory."""

    def __init__(self) -> None:
        """Load the model: every page of it is written."""
        self.model = bytearray(os.urandom(1 << 20)) * (MODEL_BYTES >> 20)

    def forward(self, data: Any) -> Any:
        """Return `data`; of a chat, what was said last."""
        return data["messages"][-1]["content"] if isinstance(data, dict) and "messages" in data else data


class Bytes(Worker):
    """Answers what it is asked, without looking at it."""

    def deserialize(self, data: bytes) -> bytes:
        """Return the body as it is."""
        return data

    def forward(self, data: Any) -> Any:
        """Return `data`."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Return the result as it is."""
        return data


class Count(SSEWorker):
    """Streams the numbers below the one that it is given."""

    def forward(self, data: Any) -> None:
        """Send an event for each."""
        for number in range(data):
            self.send_stream_event(str(number))


if __name__ == "__main__":
    server = Server(timeout=30_000)
    server.append_worker(Echo, route=["/inference", "/chat"])
    server.append_worker(Bytes, route="/bytes")
    server.append_worker(Count, route="/count")
    server.add_protocol(OpenAI(chat={"echo": "/chat"}))
    server.run()
