"""Stands in for a model that is asked for more than it can do: BENCH_MODEL says what it takes.

It sleeps, so that it takes no processor from the server, as a model on a GPU does not. Each item that `forward` gets is
counted by a byte in the file BENCH_ITEMS. A request may take a second, then the answer is 408.
"""

import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from package import Server, Worker

MODEL = os.environ["BENCH_MODEL"]
ITEMS = os.open(os.environ["BENCH_ITEMS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Constant(Worker):
    """50 ms."""

    def forward(self, data: Any) -> Any:
        """Return the item after a model's time."""
        os.write(ITEMS, b".")
        time.sleep(0.05)
        return data


class HeavyTailed(Worker):
    """20 ms for nine in ten, 320 ms for the tenth."""

    def forward(self, data: Any) -> Any:
        """Return the item after a model's time."""
        os.write(ITEMS, b".")
        time.sleep(0.02 if random.random() < 0.9 else 0.32)
        return data


class Batches(Worker):
    """20 ms for a batch, and 5 ms more for each item."""

    def forward(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return the batch after a model's time."""
        os.write(ITEMS, b"." * len(data))
        time.sleep(0.02 + 0.005 * len(data))
        return data


class Prepare(Worker):
    """40 ms before the model."""

    def forward(self, data: Any) -> Any:
        """Return the item after its time."""
        time.sleep(0.04)
        return data


if __name__ == "__main__":
    sys.argv += ["--timeout", "1000"]
    server = Server()
    if MODEL == "batches":
        server.append_worker(Batches, max_batch_size=8)
    elif MODEL == "heavy-tailed":
        server.append_worker(HeavyTailed)
    else:
        if MODEL == "two-stages":
            server.append_worker(Prepare)
        server.append_worker(Constant)
    server.run()
