"""Workers that are run over files; a spawned process imports them by name."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mosec_asgi import Reply, Server, SSEWorker, ValidationError, Worker


class Double(Worker):
    """Doubles `n`; refuses what has none."""

    def forward(self, data: list[Any]) -> list[Any]:
        time.sleep(0.001)
        return [self._of(item) for item in data]

    def _of(self, item: Any) -> Any:
        if not isinstance(item, dict) or not isinstance(item.get("n"), int):
            raise ValidationError("no number n")
        return {"double": 2 * item["n"], "batch": 0}


class Various(Worker):
    """Returns what it is told to."""

    def forward(self, data: Any) -> Any:
        match data:
            case "array":
                return {"array": np.arange(3, dtype=np.float32)}
            case "huge":
                return 1 << 80
            case "bytes":
                return b"no JSON"
            case "created":
                return Reply({"id": 7}, status=201)
            case "teapot":
                return Reply({"tea": True}, status=418)
            case "fault":
                raise KeyError("secret")
            case "print":
                print("printed by the model", flush=True)
                return "printed"
        return data


class Words(SSEWorker):
    """Streams."""

    def forward(self, data: str) -> Any:
        yield from data.split()


class Slow(Worker):
    """Takes its time."""

    def forward(self, data: float) -> float:
        time.sleep(data)
        return data


server = Server(timeout=20_000)
server.append_worker(Double, max_batch_size=16, num=2)
server.append_worker(Various, route="/v1/various")
