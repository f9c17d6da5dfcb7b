"""Load from clients that read streams to their end, and what it measured; wrk cannot tell one event from another.

Raw connections on one event loop, without an HTTP parser: a read costs the counting of one byte's occurrences. So an
event has that byte once, and nothing else of a response has it. At 1,700 events/s of 32 streams, which come one by one,
the loop was busy for 2 % of one processor's time.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import cast
from urllib.parse import urlsplit

import uvloop
from load import Measurement
from problems import BenchmarkError

# In each event, once. The services send "token~".
MARK = b"~"
OK = b"HTTP/1.1 200"
# Of a response whose length was not known at its beginning (RFC 9112, section 7.1).
END = b"\r\n0\r\n\r\n"
# Seconds for the streams that are open when the time is up.
PATIENCE = 60.0


class Streams:
    """Clients that each ask for a stream of so many events when they have read the last one to its end."""

    unit = "events/s"
    example = json.dumps({"events": 3})

    def __init__(self, lengths: Callable[[], Iterator[int]]) -> None:
        """Store the lengths.

        Args:
            lengths: returns the lengths of the streams in the order in which they are asked for.
        """
        self._lengths = lengths

    def check(self) -> None:
        """Do nothing: all that it takes is here."""

    def is_right(self, answer: bytes) -> bool:
        """Whether `answer` is a stream of three events."""
        return answer.count(MARK) == 3

    def put_on(self, url: str, connections: int, seconds: int) -> Measurement:
        """Ask for streams over `connections` connections for `seconds` seconds, and read them to their ends.

        Returns:
            the events that came within these seconds, and the times from a request to the last event of its stream, of
            all streams, so that long ones are not missing for being long.

        Raises:
            BenchmarkError: a stream was answered by an error, broke off, or did not have as many events as asked for.
        """
        tally = uvloop.run(_run(url, connections, seconds, self._lengths()))
        if tally.failure or len(tally.seconds) < 2:
            raise BenchmarkError(f"streams of {url}: {tally.failure or 'not two of them have ended'}")
        percentiles = statistics.quantiles(tally.seconds, n=100, method="inclusive")
        return Measurement(
            per_second=round(tally.events / seconds, 1),
            p50_ms=round(percentiles[49] * 1000, 3),
            p99_ms=round(percentiles[98] * 1000, 3),
            done=tally.events + tally.late,
        )


@dataclass(slots=True)
class _Tally:
    """What all clients have seen together.

    Attributes:
        until: when the time is up, in seconds of `time.perf_counter`.
        lengths: of the streams that are still to be asked for.
        events: how many came in time.
        late: how many came after it.
        seconds: from each request to the end of its stream.
        failure: what has gone wrong first.
    """

    until: float
    lengths: Iterator[int]
    events: int = 0
    late: int = 0
    seconds: list[float] = field(default_factory=list)
    failure: str = ""


class _Client(asyncio.Protocol):
    """One connection: a request, its stream, the next request."""

    def __init__(self, head: bytes, tally: _Tally) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._head = head
        self._tally = tally
        self._transport: asyncio.Transport
        self._began = 0.0
        self._expected = self._events = 0
        # How the response begins, and the end of what has come of it.
        self._status = self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        events = data.count(MARK)
        self._events += events
        if now < self._tally.until:
            self._tally.events += events
        else:
            self._tally.late += events
        if len(self._status) < len(OK):
            self._status += data[: len(OK) - len(self._status)]
        self._tail = (self._tail + data)[-len(END) :]
        if self._status == OK and self._tail == END and self._events == self._expected:
            self._tally.seconds.append(now - self._began)
            self._ask()
        elif self._tail == END or not OK.startswith(self._status):
            self._end(f"{self._events} events of {self._expected}, and then {data[-300:]!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"a connection was lost after {self._events} events of {self._expected}: {exc}")

    def _ask(self) -> None:
        self._began = time.perf_counter()
        if self._began >= self._tally.until:
            self._end("")
            return
        self._expected, self._events = next(self._tally.lengths), 0
        self._status = self._tail = b""
        body = json.dumps({"events": self._expected}).encode()
        self._transport.write(self._head % len(body) + body)

    def _end(self, failure: str) -> None:
        if not self.done.done():
            self._tally.failure = self._tally.failure or failure
            self.done.set_result(None)
            self._transport.close()


async def _run(url: str, connections: int, seconds: int, lengths: Iterator[int]) -> _Tally:
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n".encode()
    head += b"content-length: %d\r\n\r\n"
    tally = _Tally(time.perf_counter() + seconds, lengths)
    loop = asyncio.get_running_loop()
    clients = []
    try:
        for _ in range(connections):
            _, client = await loop.create_connection(
                lambda: _Client(head, tally), str(parts.hostname), parts.port or 80
            )
            clients.append(client)
        await asyncio.wait_for(asyncio.gather(*[client.done for client in clients]), seconds + PATIENCE)
    except (OSError, asyncio.TimeoutError) as error:
        tally.failure = tally.failure or f"{type(error).__name__}: {error}"
    return tally


def long_tailed() -> Iterator[int]:
    """Yield lengths as those of generated texts are: half of them below 40, one in a hundred above 400, none above 600.

    The same ones each time, drawn from a lognormal distribution.
    """
    source = random.Random(3)
    while True:
        yield min(max(round(source.lognormvariate(3.7, 1.0)), 1), 600)


EQUAL = Streams(lambda: repeat(500))
LONG_TAILED = Streams(long_tailed)
