"""A model that takes eight seconds to load: half of them it computes, half it sleeps."""

import time
from typing import Any

from package import Server, Worker

SECONDS = 8.0


class Loading(Worker):
    """Answers what it is asked, once it is loaded."""

    def __init__(self) -> None:
        until = time.monotonic() + SECONDS / 2
        while time.monotonic() < until:
            sum(range(1000))
        time.sleep(SECONDS / 2)

    def forward(self, data: Any) -> Any:
        """Return `data`."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Loading)
    server.run()
