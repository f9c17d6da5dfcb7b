"""Workers that count their calls; a spawned process imports them by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from mosec_asgi import Reply, ValidationError, Worker

PATIENCE = 30.0


class Counts(Worker):
    """Answers how often it was called, once the file that the input names is there."""

    calls = 0

    def forward(self, data: dict[str, Any]) -> Any:
        self.calls += 1
        deadline = time.monotonic() + PATIENCE
        while not Path(data["until"]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if data.get("bad"):
            raise ValidationError(f"call {self.calls} is bad")
        if data.get("reply"):
            return Reply(self.calls, status=201, headers={"x-call": str(self.calls)})
        if data.get("large"):
            return np.full(300_000, self.calls)
        return self.calls


class Adds(Worker):
    """Changes the array that it is given, and answers its first element."""

    def forward(self, data: Any) -> int:
        data = data + 1
        return int(data[0])
