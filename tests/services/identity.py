"""Workers that say who they are."""

from __future__ import annotations

import time
from typing import Any

from mosec import Server, Worker


class First(Worker):
    def forward(self, data: Any) -> list[Any]:
        # Long enough for requests that come together to need both workers.
        time.sleep(0.02)
        return [(self.worker_id, self.stage, self.max_batch_size)]


class Second(Worker):
    def forward(self, data: list[list[Any]]) -> list[list[Any]]:
        return [[*item, (self.worker_id, self.stage, self.max_batch_size)] for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(First, num=2)
    server.append_worker(Second, max_batch_size=16)
    server.run()
