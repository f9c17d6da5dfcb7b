"""A stand-in for a language model that writes up to 16 texts at a time; a text joins and leaves between two steps."""

import time
from collections.abc import Iterator
from typing import Any

from package import Server

from mosec_asgi import ContinuousWorker

SLOTS = 16
SECONDS_PER_STEP = 0.005
SECONDS_PER_SLOT = 0.0001
TOKEN = "token~"


def compute(slots: int) -> None:
    """Take the time of a step that adds one token to each of `slots` texts; asleep, as in model.py."""
    time.sleep(SECONDS_PER_STEP + SECONDS_PER_SLOT * slots)


class Continuous(ContinuousWorker):
    """Writes as many tokens as it is asked for."""

    def __init__(self) -> None:
        # What is left to write in each slot.
        self.left: dict[int, int] = {}

    def admit(self, item: dict[str, int]) -> int:
        """Take a free slot."""
        slot = min(set(range(SLOTS)) - self.left.keys())
        self.left[slot] = item["events"]
        return slot

    def step(self) -> Iterator[tuple[int, Any]]:
        """Write one token into each text."""
        compute(len(self.left))
        for slot in self.left:
            yield slot, TOKEN
            self.left[slot] -= 1
            if not self.left[slot]:
                yield slot, self.FINISHED

    def evict(self, slot: Any) -> None:
        """Free a slot."""
        del self.left[slot]


if __name__ == "__main__":
    server = Server(timeout=60_000)
    server.append_worker(Continuous, max_batch_size=SLOTS)
    server.run()
