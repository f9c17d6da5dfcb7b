"""Workers that stream, for programs under test; they note in files what happens to them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from mosec_asgi import ClientError, ContinuousWorker, Event, SSEWorker, Worker


def note(name: str, text: str) -> None:
    """Append a line to a file in the folder that NOTES names."""
    with (Path(os.environ["NOTES"]) / name).open("a") as file:
        file.write(text + "\n")


class Count(SSEWorker):
    """Streams `count` events, `seconds` apart, of `size` bytes more."""

    def forward(self, data: dict[str, Any]) -> Iterator[str]:
        name = data.get("name", "count")
        try:
            for number in range(data["count"]):
                note(name, f"{number}")
                yield f"{name} {number}" + "." * data.get("size", 0)
                time.sleep(data.get("seconds", 0))
        finally:
            note(name, "closed")


class CountBatch(SSEWorker):
    """The same for a batch, in steps of 5 ms; each ends when it has its own count."""

    def forward(self, data: list[dict[str, Any]]) -> Iterator[list[Any]]:
        for step in range(max(item["count"] for item in data) + 1):
            yield [self._event(item, step) for item in data]
            time.sleep(0.005)

    def _event(self, item: dict[str, Any], step: int) -> Any:
        if step < item["count"]:
            return f"{item['name']} {step}" + "." * item.get("size", 0)
        return self.FINISHED if step == item["count"] else None


class Pushed(SSEWorker):
    """The same, pushed by index."""

    def forward(self, data: list[dict[str, Any]]) -> None:
        for step in range(max(item["count"] for item in data)):
            for index, item in enumerate(data):
                if step < item["count"]:
                    self.send_stream_event(f"{item['name']} {step}", index)


class CountAsync(SSEWorker):
    """The same, asynchronously."""

    async def forward(self, data: dict[str, Any]) -> AsyncIterator[str]:
        try:
            for number in range(data["count"]):
                yield f"{data['name']} {number}"
                await asyncio.sleep(data.get("seconds", 0.005))
        finally:
            note(data["name"], "closed")


class Slots(ContinuousWorker):
    """The same in slots; a step takes 5 ms."""

    def __init__(self) -> None:
        self.running: dict[int, list[Any]] = {}

    def admit(self, item: dict[str, Any]) -> int:
        slot = next(slot for slot in range(self.max_batch_size) if slot not in self.running)
        self.running[slot] = [item["name"], 0, item["count"], "." * item.get("size", 0)]
        note("batch", f"+{item['name']} {len(self.running)}")
        return slot

    def step(self) -> Iterator[tuple[int, Any]]:
        time.sleep(0.005)
        for slot, state in self.running.items():
            name, number, count, padding = state
            if number == count:
                yield slot, self.FINISHED
            else:
                state[1] += 1
                yield slot, f"{name} {number}{padding}"

    def evict(self, slot: int) -> None:
        note("batch", f"-{self.running.pop(slot)[0]} {len(self.running)}")


class Odd(SSEWorker):
    """Yields for each item what its name says, then an ordinary event; an only item may do any of it to its stream."""

    def forward(self, data: list[str]) -> Iterator[Any]:
        yield [f"{name} begins" for name in data]
        for index, name in enumerate(data):
            if name == "number":
                yield index, 7
            elif name == "surrogate":
                yield index, "\udc80"
            elif name == "bytes":
                yield index, b"\xff\xfe"
            elif name == "error":
                yield index, ClientError("asked to fail")
            elif name == "late":
                yield index, self.FINISHED
                yield index, "too late"
            elif name == "far":
                yield len(data) + 3, "for nobody"
            elif name == "shape":
                yield "neither a pair nor a list"
        yield [f"{name} ends" for name in data]


class Fields(SSEWorker):
    def forward(self, data: dict[str, Any]) -> Iterator[Event]:
        yield Event("one\ntwo", event="token", id="7", retry=1000)
        yield Event(b"\xc3\xbc")


class Raw(SSEWorker):
    """Streams bytes as they are; "fail" raises before the first of them or after."""

    resp_mime_type = "application/octet-stream"

    def forward(self, data: dict[str, Any]) -> Iterator[bytes]:
        if data.get("fail") == "before":
            raise ClientError("nothing to send")
        for number in range(data.get("count", 3)):
            yield bytes([number]) * 5
        if data.get("fail") == "after":
            raise ClientError("that was not all")


class Dies(SSEWorker):
    """Dies before its first event or after it, the first time that it is asked with a name."""

    def forward(self, data: dict[str, Any]) -> Iterator[str]:
        note("lives", data["name"])
        again = (Path(os.environ["NOTES"]) / data["name"]).exists()
        (Path(os.environ["NOTES"]) / data["name"]).touch()
        if data["when"] == "before" and not again:
            os._exit(7)
        yield "first"
        if data["when"] == "after":
            os._exit(7)
        yield "second"


class Slow(SSEWorker):
    """Waits before its first event, or between the first and the second."""

    def forward(self, data: dict[str, float]) -> Iterator[str]:
        time.sleep(data.get("before", 0))
        yield "first"
        time.sleep(data.get("between", 0))
        yield "second"


class Waits(Worker):
    """An asynchronous worker that waits as long as it is told, and notes how that ended."""

    async def forward(self, data: Any) -> Any:
        item = data[0] if isinstance(data, list) else data
        try:
            await asyncio.sleep(item["seconds"])
        except asyncio.CancelledError:
            note("waits", "cancelled")
            raise
        note("waits", "done")
        return data


class WaitsForLeaving(Worker):
    """Works until its client has left, which it asks for."""

    def forward(self, data: Any) -> Any:
        note("leaving", "begun")
        while not self.is_cancelled():
            time.sleep(0.01)
        note("leaving", "noticed")
        return data
