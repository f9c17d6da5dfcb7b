"""Three routes; two of them share one worker process, defined with `register_runtime`."""

from __future__ import annotations

import os
from typing import Any

from mosec import Runtime, Server, Worker


class Double(Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"value": data["value"] * 2, "pid": os.getpid()}


class Increment(Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "value": data["value"] + 1}


if __name__ == "__main__":
    server = Server()
    double = Runtime(Double)
    increment = Runtime(Increment)
    server.register_runtime(
        {"/double": [double], "/double/increment": [double, increment], "/v1/increment": [increment]}
    )
    server.run()
