"""Two stages with an array between them, which do what a request says; and a worker that answers garbage."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from workers import Raw

from mosec_asgi import Worker
from mosec_asgi.inside.codec import Codec
from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.reference import Span


class Lethal:
    """Kills the process that pickles it, unless the file exists; creates it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        once(self.file)
        return str, ("survived",)


def once(file: str) -> None:
    """Kill this process if the file does not exist, and create it."""
    if not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Make(Worker):
    """Makes an array of `bytes` bytes, all `value`."""

    def forward(self, data: dict[str, Any]) -> list[Any]:
        array = np.full(data.get("bytes", 1_000_000), data["value"], np.uint8)
        if data["do"] == "die while it writes":
            # The array is written by then, and the rest is not.
            return [data, array, Lethal(data["file"])]
        return [data, array]


class Use(Worker):
    """Uses an array, and answers what it found there."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray[Any, Any]] = []

    def forward(self, items: Any) -> Any:
        if isinstance(items[0], list):
            return [self.use(*item) for item in items]
        return self.use(*items)

    def use(self, data: dict[str, Any], array: np.ndarray[Any, Any], *_: Any) -> Any:
        match data["do"]:
            case "keep":
                self.kept.append(array[10:])
            case "tell and let go":
                found = [sorted({int(each.min()), int(each.max())}) for each in self.kept]
                self.kept.clear()
                return found
            case "change it and die":
                found = [int(array.min()), int(array.max())]
                array[:] = 99
                once(data["file"])
                return found
            case "wait":
                while not Path(data["file"]).exists():
                    time.sleep(0.005)
        return [int(array.min()), int(array.max())]


class AsyncUse(Use):
    """The same, several at a time."""

    async def forward(self, items: Any) -> Any:
        return super().forward(items)


class BatchUse(Use):
    """The same, in batches."""


class Garbage(Raw):
    """Answers the body, or a place in shared memory that is not its own."""

    def forward(self, data: bytes) -> bytes:
        if data == b"garbage":
            Codec.encode = lambda *_: (frames.IN_MEMORY, reference.pack(reference.Kind.BYTES, [Span(0, 5000)]))  # type: ignore
        return data
