"""A client for streams of events that costs little: a raw connection, and the time at which each event came."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stream:
    """One stream as its client saw it.

    Attributes:
        began: when the request was sent, in seconds of `time.perf_counter`.
        times: when each event came.
        ended: the stream came to its end.
    """

    began: float = 0.0
    times: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def first(self) -> float:
        """Seconds from the request to the first event."""
        return self.times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        """Seconds between events."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


class Connection:
    """A connection to a server on this machine, for one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to 127.0.0.1."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str, body: Any) -> Stream:
        """Send a request; its stream is read by `read`."""
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(payload)}\r\nconnection: close\r\n\r\n"
        stream = Stream(began=time.perf_counter())
        self._writer.write(head.encode() + payload)
        await self._writer.drain()
        return stream

    async def read(self, stream: Stream, events: int | None = None) -> Stream:
        """Read until the end of the stream, or until `events` more events have come."""
        wanted = None if events is None else len(stream.times) + events
        while wanted is None or len(stream.times) < wanted:
            data = await self._reader.read(1 << 16)
            if not data:
                stream.ended = True
                break
            # Each event of these services is one line of data, and chunks may hold several.
            stream.times += [time.perf_counter()] * data.count(b"data: ")
        return stream

    def close(self) -> None:
        """Leave, whether or not the stream has ended."""
        self._writer.close()


async def stream(port: int, path: str, body: Any) -> Stream:
    """Ask for a stream on a connection of its own, and read it to its end."""
    connection = await Connection.open(port)
    try:
        return await connection.read(await connection.ask(path, body))
    finally:
        connection.close()
