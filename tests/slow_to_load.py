"""A service whose model takes a moment to load."""

import time
from typing import Any

from mosec_asgi import Server, Worker


class Slow(Worker):
    def __init__(self) -> None:
        time.sleep(1.5)

    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Slow)
    server.run()
