"""Workers for the tests whose server runs in the test's own process: a spawned worker imports its class by name."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from mosec_asgi import ValidationError, Worker


def say(text: str) -> None:
    """Print a line in one piece: several workers print into the same file."""
    os.write(1, f"{text}\n".encode())


class Echo(Worker):
    """Answers what it is asked, and which process it is."""

    def forward(self, data: Any) -> dict[str, Any]:
        if data == "invalid":
            raise ValidationError("not this")
        return {"echo": data, "pid": os.getpid()}


class Raw(Worker):
    """Answers the bytes that it was sent."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data


class Gate(Worker):
    """Answers once the file exists that the request names."""

    def forward(self, data: str) -> str:
        say("waiting at the gate")
        while not Path(data).exists():
            time.sleep(0.005)
        return "opened"


class Counted(Worker):
    """Adds a byte to the file that a request names, each time it is run."""

    def forward(self, data: str) -> None:
        with open(data, "ab", buffering=0) as file:
            file.write(b".")


class Modules(Worker):
    """Answers the names of the modules that its process has loaded."""

    def forward(self, data: Any) -> list[str]:
        return sorted(sys.modules)


class Broken(Worker):
    """Cannot be started."""

    def __init__(self) -> None:
        raise RuntimeError("the weights are missing")

    def forward(self, data: Any) -> Any:
        return data


class Loading(Worker):
    """Says that it has begun to load, and does not come to an end with it."""

    def __init__(self) -> None:
        say("loading has begun")
        time.sleep(600)

    def forward(self, data: Any) -> Any:
        return data


class Closing(Worker):
    """Says that it has been closed."""

    def forward(self, data: Any) -> Any:
        return data

    def close(self) -> None:
        say(f"closed worker {self.worker_id}")


class BadExample(Worker):
    """Has an example that its model does not take."""

    example = {"x": "text"}

    def forward(self, data: dict[str, Any]) -> float:
        return data["x"] / 2


class GoodExample(BadExample):
    """Has an example that its model takes."""

    example = {"x": 3}


class Halve(Worker):
    """A last stage."""

    def forward(self, data: float) -> float:
        return data / 2
