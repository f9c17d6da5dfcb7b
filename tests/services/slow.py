"""A stage whose `forward` may take a fifth of a second, and one that only the service's timeout bounds."""

from __future__ import annotations

import time
from typing import Any

from mosec import Server, Worker


class Sleep(Worker):
    def forward(self, data: dict[str, float]) -> Any:
        time.sleep(data["seconds"])
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Sleep, timeout=0.2)
    server.append_worker(Sleep, timeout=10.0, num=2, route="/patient")
    server.run()
