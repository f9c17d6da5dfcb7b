"""Workers for the tests whose server runs in the test's own process: a spawned worker imports its class by name."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
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


class Parent(Worker):
    """Has a process of its own do the work, as a data loader does; answers its exit code."""

    def forward(self, data: int) -> int | None:
        process = multiprocessing.get_context("fork").Process(target=sys.exit, args=(data,))
        process.start()
        process.join()
        return process.exitcode


class Stuck(Worker):
    """Does not come back from what it is asked, as a call into C that hangs does not; answers who it is if asked 0."""

    def forward(self, data: int) -> int:
        if data:
            say("stuck")
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(data)
        return os.getpid()


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


class Cut(Worker):
    """A first stage: bytes as they came, and their beginning."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> tuple[bytes, bytes]:
        return data[:16], data


class Digest(Worker):
    """A middle stage, in batches."""

    def forward(self, data: list[tuple[bytes, bytes]]) -> list[tuple[bytes, str]]:
        return [(beginning, hashlib.sha256(whole).hexdigest()) for beginning, whole in data]


class Join(Worker):
    """A last stage: the beginning and the digest as bytes."""

    resp_mime_type = "application/octet-stream"

    def forward(self, data: tuple[bytes, str]) -> bytes:
        beginning, digest = data
        return beginning + b" " + digest.encode()

    def serialize(self, data: bytes) -> bytes:
        return data
