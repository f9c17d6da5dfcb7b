"""Workers of the contract tests that every executor passes; a spawned process imports them by name."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from mosec_asgi import ClientError, ContinuousWorker, SSEWorker, ValidationError, Worker


class Panic(BaseException):
    """As a library raises it that is not written in Python."""


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        if data == "invalid":
            raise ValidationError("not this")
        if data == "panic":
            raise Panic("of a foreign library")
        if data == "exit":
            raise SystemExit(3)
        return data


class Where(Worker):
    """Answers where it runs, and what it knows of itself."""

    def forward(self, data: Any) -> Any:
        return [os.getpid(), threading.get_ident(), self.stage, self.worker_id]


class Batch(Worker):
    """Adds the size of its batch; cannot take "bad"."""

    def forward(self, data: list[Any]) -> list[Any]:
        if "bad" in data:
            raise RuntimeError("there is a bad one")
        return [[item, len(data)] for item in data]


class AsyncEcho(Worker):
    async def forward(self, data: Any) -> Any:
        await asyncio.sleep(0)
        if data == "panic":
            raise Panic("of a foreign library")
        return data


class Reckless(Worker):
    """Says, by an error of its own, that its client has left; stops its loop; cancels all tasks of its loop."""

    async def forward(self, data: str) -> str:
        if data == "says 499":
            error = ClientError("text")
            error.code = 499
            raise error
        if data == "stops the loop":
            asyncio.get_running_loop().stop()
        if data == "cancels all":
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
        await asyncio.sleep(0.01)
        return data


class Gate(Worker):
    """Notes that it has begun, and answers once the file is there that the request names."""

    def forward(self, data: str) -> str:
        Path(f"{data}.begun").touch()
        while not Path(data).exists():
            if self.is_cancelled():
                Path(f"{data}.left").touch()
                return "left"
            time.sleep(0.002)
        return "opened"


class Hangs(Worker):
    """Does not come back before the file is there that a request names."""

    def forward(self, data: str) -> str:
        until = time.monotonic() + 30.0
        while data != "quick" and not Path(data).exists() and time.monotonic() < until:
            try:
                time.sleep(0.01)
            except BaseException:
                continue
        return "done"


class FormatsHang(Worker):
    """Has formats that do not come back before the file is there that a request names."""

    @staticmethod
    def wait(data: Any, place: str) -> Any:
        if data[0] == place:
            Hangs.forward(Hangs(), data[1])
        return data

    def deserialize(self, data: bytes) -> Any:
        return self.wait(json.loads(bytes(data)), "deserialize")

    def forward(self, data: Any) -> Any:
        return data

    def serialize(self, data: Any) -> bytes:
        return json.dumps(self.wait(data, "serialize")).encode()


class AsyncFormatsHang(FormatsHang):
    """The same, and blocks the event loop meanwhile."""

    async def forward(self, data: Any) -> Any:
        return data


class CannotStart(Worker):
    error: type[BaseException] = OSError

    def __init__(self) -> None:
        raise self.error("no weights")

    def forward(self, data: Any) -> Any:
        return data


class PanicsAtStart(CannotStart):
    error = Panic


class Closes(Worker):
    """Leaves a file when it is closed."""

    path = ""

    def forward(self, data: str) -> str:
        self.path = data
        return "noted"

    def close(self) -> None:
        if self.path:
            Path(self.path).touch()


class Counts(SSEWorker):
    def forward(self, data: int) -> Iterator[str]:
        for number in range(data):
            yield f"{number}"


class CountsEach(SSEWorker):
    """Returns a generator for each of its items."""

    def forward(self, data: list[int]) -> list[Iterator[str]]:
        return [map(self.event, range(number)) if number > 0 else self.panic() for number in data]

    @staticmethod
    def event(number: int) -> str:
        return f"event {number}"

    @staticmethod
    def panic() -> Iterator[str]:
        yield "event"
        raise Panic("of a foreign library")


class CountsAsync(SSEWorker):
    async def forward(self, data: int) -> AsyncIterator[str]:
        for number in range(data):
            await asyncio.sleep(0)
            yield f"{number}"


class Slots(ContinuousWorker):
    """Counts each of its requests down, step by step."""

    def __init__(self) -> None:
        self._left: dict[int, int] = {}
        self._next = 0

    def admit(self, data: int) -> int:
        self._next += 1
        self._left[self._next] = data
        return self._next

    def step(self) -> list[tuple[int, Any]]:
        events: list[tuple[int, Any]] = []
        for slot in list(self._left):
            if self._left[slot]:
                self._left[slot] -= 1
                events.append((slot, str(self._left[slot])))
            else:
                events.append((slot, self.FINISHED))
        return events

    def evict(self, slot: int) -> None:
        del self._left[slot]
