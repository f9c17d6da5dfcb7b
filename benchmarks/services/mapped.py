"""The model of `model.py`, 5 ms a batch and 0.1 ms an item, as `mosec-asgi map` takes it, with its own times.

What it writes into the file that MAPPED_TIMES names: seconds in `forward`, and from the first of these to the last.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import Model
from package import Server


class Timed(Model):
    """Notes how much of its time it is at work."""

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0
        self.within = 0.0

    def forward(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return the batch after a batch's time."""
        began = time.monotonic()
        result = super().forward(data)
        self.last = time.monotonic()
        self.first = self.first or began
        self.within += self.last - began
        return result

    def close(self) -> None:
        """Write it down."""
        if "MAPPED_TIMES" in os.environ:
            Path(os.environ["MAPPED_TIMES"]).write_text(f"{self.within} {self.last - self.first}")


server = Server()
server.append_worker(Timed, max_batch_size=64, max_wait_time=10)
