"""Workers that are called with Python objects; a spawned process imports them by name."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mosec_asgi import (
    ClientError,
    ContinuousWorker,
    DecodingError,
    EncodingError,
    Event,
    ServerError,
    SSEWorker,
    ValidationError,
    Worker,
)
from mosec_asgi.errors import MosecError


class Point:
    """An object of a class of one's own."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


class Teapot(MosecError):
    code = 418
    msg = "I am a teapot"


class Busy(MosecError):
    code = 429
    msg = "busy"


ERRORS: dict[str, type[BaseException]] = {
    each.__name__: each
    for each in (ClientError, DecodingError, ValidationError, ServerError, EncodingError, Teapot, Busy, KeyError)
}


class Exits:
    """Would end the program that pickles it, or, where it is `late`, the one that unpickles it."""

    def __init__(self, *, late: bool) -> None:
        self.late = late

    def __reduce__(self) -> Any:
        return (sys.exit, (3,)) if self.late else sys.exit(3)


class Exiting(Worker):
    def forward(self, data: Any) -> Any:
        return Exits(late=True) if data == "exits" else data


class Doubles(Worker):
    """Doubles arrays in place, and fails where one of a batch is negative."""

    def forward(self, data: list[Any]) -> list[float]:
        for array in data:
            array *= 2
        if any(array[0] < 0 for array in data):
            raise ValueError("negative")
        return [float(array[0]) for array in data]


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Closed(Worker):
    """Has no format for clients, and counts."""

    def deserialize(self, data: bytes) -> Any:
        raise AssertionError("what is given to `infer` is no body")

    def serialize(self, data: Any) -> bytes:
        raise AssertionError("what `infer` returns is no body")

    def forward(self, data: Any) -> Any:
        return [data, self.stage]


class Awkward(Worker):
    """Raises, returns, and does what it is told to."""

    def forward(self, data: Any) -> Any:
        what, value = data
        if what == "raise":
            raise ERRORS[value]("the details")
        if what == "lambda":
            return lambda: value
        if what == "die":
            os._exit(9)
        if what == "sleep":
            time.sleep(value)
        return value


class Sizes(Worker):
    """Adds the size of its batch."""

    def forward(self, data: list[Any]) -> list[Any]:
        return [[item, len(data)] for item in data]


class AsyncSizes(Worker):
    async def forward(self, data: list[Any]) -> list[Any]:
        await asyncio.sleep(0)
        return [[item, len(data)] for item in data]


class Slow(Worker):
    """Takes a while, less where its client has left."""

    def forward(self, data: float) -> float:
        until = time.monotonic() + data
        while time.monotonic() < until and not self.is_cancelled():
            time.sleep(0.001)
        return data


class Gate(Worker):
    """Notes that it has begun, and waits until the file is there that it is given, or until it is told to stop."""

    def forward(self, data: str) -> str:
        Path(f"{data}.begun").touch()
        until = time.monotonic() + 30.0
        while not Path(data).exists() and time.monotonic() < until:
            if self.is_cancelled():
                Path(f"{data}.left").touch()
                return "left"
            time.sleep(0.002)
        return "opened"


class Twice(Worker):
    """Doubles an array where it lies; answers where that is."""

    def forward(self, data: Any) -> Any:
        data *= 2
        return data


class Last(Worker):
    """Answers what it is given, and whether that owns its memory."""

    def forward(self, data: Any) -> Any:
        return {"array": data, "owned": bool(data.flags.owndata)}


class Traced(Worker):
    """Adds the most bytes that have lain in its own memory since the last time, not counting what is shared."""

    def __init__(self) -> None:
        tracemalloc.start()

    def forward(self, data: Any) -> Any:
        array, peaks = data
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return array, [*peaks, peak]


class Arrays(Worker):
    """Makes an array of so many bytes."""

    def forward(self, data: int) -> Any:
        return np.full(data, 7, np.uint8)


class Key:
    """What a mixin of IPC serialisation makes of things between stages."""

    def serialize_ipc(self, data: Any) -> bytes:
        return b"key:" + repr(data).encode()

    def deserialize_ipc(self, data: bytes) -> Any:
        assert data.startswith(b"key:"), "this is no key"
        return eval(data.removeprefix(b"key:"))


class KeyEcho(Key, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Spell(SSEWorker):
    """Yields the parts of what it is given; raises in the place of an error's name."""

    def forward(self, data: Any) -> Iterator[Any]:
        for part in data:
            if part == "lambda":
                yield lambda: None
            elif isinstance(part, str) and part in ERRORS:
                raise ERRORS[part]("the details")
            else:
                yield part


class SpellTogether(SSEWorker):
    def forward(self, data: list[str]) -> Iterator[list[Any]]:
        for place in range(max(map(len, data))):
            yield [(text[place], len(data)) if place < len(text) else None for text in data]


class Push(SSEWorker):
    def forward(self, data: list[Any]) -> None:
        for part in data:
            self.send_stream_event(part)


class AsyncSpell(SSEWorker):
    async def forward(self, data: Any) -> AsyncIterator[Any]:
        for part in data:
            yield part
            await asyncio.sleep(0)


class Steps(ContinuousWorker):
    def __init__(self) -> None:
        self.left: dict[int, list[Any]] = {}

    def admit(self, item: Any) -> int:
        slot = min(set(range(self.max_batch_size)) - self.left.keys())
        self.left[slot] = list(item)
        return slot

    def step(self) -> Iterator[tuple[int, Any]]:
        for slot, parts in self.left.items():
            yield slot, {"part": parts.pop(0)} if parts else self.FINISHED

    def evict(self, slot: int) -> None:
        del self.left[slot]


class Endless(SSEWorker):
    """Yields for ever; writes a letter for each event to the file that it is given, and notes its end beside it."""

    def forward(self, data: str) -> Iterator[str]:
        try:
            while True:
                with Path(data).open("a") as file:
                    file.write("x")
                yield "x" * 1000
        finally:
            Path(f"{data}.ended").touch()


class Named(SSEWorker):
    def forward(self, data: str) -> Iterator[Event]:
        yield Event(data, event="named")
