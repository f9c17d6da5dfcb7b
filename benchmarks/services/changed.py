"""What `benchmarks/changes.py` changes while it is under load: batches of a model that takes 50 ms each.

The worker sleeps, as one does that waits for a GPU: what is measured is the service, not the machine.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from mosec_asgi import Server, Worker

SECONDS_PER_BATCH = 0.05


class Model(Worker):
    """Answers what it is asked, after a model's time."""

    def forward(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return a batch of items."""
        time.sleep(SECONDS_PER_BATCH)
        return data


if __name__ == "__main__":
    # Clients use the connection that they used last: others are silent for long.
    server = Server(
        log_level="warning", timeout=10_000, keep_alive=3_600_000, admin_socket=os.environ["CHANGED_SOCKET"]
    )
    server.append_worker(Model, num=2, max_batch_size=4)
    server.run()
