"""What `benchmarks/soak.py` loads for minutes: a stage without batching, one with, and one that streams.

Each answer says which process gave it, and its number in the stage: the second worker of each stage is there to be
killed, the first to live and be measured.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from echo import Echo

from mosec_asgi import Server, SSEWorker, ValidationError, Worker

Item = dict[str, Any]


class One(Worker):
    """Answers an item with itself, or fails as it says."""

    def forward(self, data: Any) -> Any:
        """Answer one item."""
        return self.answer(data)

    def answer(self, item: Item) -> Item:
        """Return an item and whose answer it is; raise what it asks for."""
        if item["do"] == "refuse":
            raise ValidationError("as it was told to")
        if item["do"] == "fail":
            raise RuntimeError("as it was told to")
        return {"item": item, "process": os.getpid(), "worker": self.worker_id}


class Many(One):
    """Does the same in batches, in which the one that fails must not spoil the others."""

    def forward(self, data: Sequence[Item]) -> list[Item]:
        """Answer a batch."""
        return [self.answer(item) for item in data]


class Stream(SSEWorker):
    """Answers an item with as many events as it asks for, each with the item's number and its own."""

    def forward(self, data: Item) -> Iterator[str]:
        """Yield the events of one item."""
        for number in range(data["events"]):
            yield f"{data['number']} {number} {os.getpid()} {self.worker_id}"


if __name__ == "__main__":
    # Items that fail are logged with a warning, thousands a second.
    server = Server(log_level="error", timeout=10_000)
    # Asked once, when the service is there.
    server.append_worker(Echo)
    server.append_worker(One, num=2, max_attempts=5, route="/one")
    server.append_worker(Many, num=2, max_attempts=5, max_batch_size=8, route="/many")
    server.append_worker(Stream, num=2, max_attempts=5, route="/stream")
    server.run()
