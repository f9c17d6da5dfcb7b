"""Two routes that share one worker process, defined with a list of routes, and one with a second stage."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker


class Double(Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"value": data["value"] * 2, "pid": os.getpid()}


class Increment(Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "value": data["value"] + 1}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Double, route=["/double", "/double/increment"])
    server.append_worker(Increment, route="/double/increment")
    server.run()
