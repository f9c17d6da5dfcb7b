"""What `benchmarks/faults.py` does its worst to: each promise has a stage without batching and one with.

Every answer says which process gave it, so that whoever sends signals knows whom to hit.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from echo import Echo

from mosec_asgi import Server, Worker

# Long enough that a worker is nearly always hit at work, and short enough for thousands of requests a second.
SECONDS_PER_CALL = 0.001


class One(Worker):
    """Answers what it is asked, and by whom."""

    def forward(self, data: Any) -> dict[str, Any]:
        """Return one item."""
        time.sleep(SECONDS_PER_CALL)
        return {"item": data, "process": os.getpid()}


class Many(Worker):
    """Does the same in batches."""

    def forward(self, data: Sequence[Any]) -> list[dict[str, Any]]:
        """Return a batch of items."""
        time.sleep(SECONDS_PER_CALL)
        return [{"item": item, "process": os.getpid()} for item in data]


if __name__ == "__main__":
    server = Server(log_level="error", timeout=10_000)
    # Asked once, when the service is there.
    server.append_worker(Echo)
    for route, settings in {
        "/five-attempts": {"max_attempts": 5},
        "/two-attempts": {},
        "/stopped": {"timeout": 0.5},
    }.items():
        server.append_worker(One, num=2, route=route, **settings)  # type: ignore[arg-type]
        server.append_worker(Many, num=2, max_batch_size=8, route=f"{route}/batched", **settings)  # type: ignore[arg-type]
    server.run()
