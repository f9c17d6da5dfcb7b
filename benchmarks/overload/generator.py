"""Requests at times of their own, whatever the server does with those before: an open loop, as the world's clients are.

A request goes out on a connection that has nothing to wait for; where there is none, another is opened. Its latency
counts from when it was due. The client is a bare protocol, so that one core sends some thousands of requests a second.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

# Seconds that the last answers are waited for.
PATIENCE = 5.0


@dataclass(slots=True)
class Request:
    """A request.

    Attributes:
        due: when it was to be sent, in seconds from the start.
        status: of its answer; 0 where there is none, because its connection was lost.
        latency: seconds from when it was due until its answer was whole.
        heard: called with its answer, if anybody waits for it.
    """

    due: float
    status: int = 0
    latency: float = 0.0
    heard: Callable[[], None] | None = None


class _Client(asyncio.Protocol):
    """A connection that carries one request after the other."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: Request, data: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._request = request
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        if not lengths or len(body) < lengths[0]:
            return
        self._received = b""
        request, self._request = self._request, None
        if request is not None:
            self._generator.answered(request, int(lines[0].split(b" ")[1]))
        if b"connection: close" not in lines:
            self._generator.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._generator.idle:
            self._generator.idle.remove(self)
        if self._request is not None:
            self._generator.answered(self._request, 0)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


class Generator:
    """Sends requests to a server.

    Attributes:
        idle: the connections that wait for nothing.
    """

    def __init__(self, port: int, path: str, body: bytes) -> None:
        """Prepare to send `body` to `path` of a server on this machine."""
        self.idle: deque[_Client] = deque()
        self._port = port
        self._data = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        self._clients: list[_Client] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._began = 0.0
        self._waiting = 0
        self._all_answered = asyncio.Event()

    def answered(self, request: Request, status: int) -> None:
        """Note an answer."""
        request.status = status
        request.latency = time.monotonic() - self._began - request.due
        self._waiting -= 1
        if not self._waiting:
            self._all_answered.set()
        if request.heard is not None:
            # Later: its connection is not idle yet.
            asyncio.get_running_loop().call_soon(request.heard)

    async def saturate(self, clients: int, seconds: float) -> float:
        """Let some clients ask again as soon as they are answered; return the answers a second.

        They come often enough that a worker never waits for them.
        """
        loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        answered: list[float] = []
        done = asyncio.Event()

        def ask() -> None:
            now = time.monotonic() - self._began
            if now >= seconds:
                if not self._waiting:
                    done.set()
                return
            self._waiting += 1
            request = Request(now)
            request.heard = functools.partial(hear, request)
            self._send(request)

        def hear(request: Request) -> None:
            if request.status == 200:
                answered.append(time.monotonic() - self._began)
            ask()

        for _ in range(clients):
            loop.call_soon(ask)
        await asyncio.wait_for(done.wait(), seconds + PATIENCE)
        # Of batches, all answers come at once: those of the first are not counted.
        first = sum(at < answered[0] + 0.002 for at in answered)
        return (len(answered) - first) / (answered[-1] - answered[0])

    async def run(self, rate: float, seconds: float, seed: int) -> list[Request]:
        """Send requests by chance at `rate` a second, for some seconds; return them with their answers."""
        random = Random(seed)
        requests: list[Request] = []
        self._began = time.monotonic()
        due = random.expovariate(rate)
        while due < seconds:
            delay = self._began + due - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            request = Request(due)
            requests.append(request)
            self._waiting += 1
            self._all_answered.clear()
            self._send(request)
            due += random.expovariate(rate)
        if self._waiting:
            try:
                await asyncio.wait_for(self._all_answered.wait(), PATIENCE)
            except asyncio.TimeoutError:
                # They stay without a status.
                self._waiting = 0
        return requests

    def close(self) -> None:
        """End all connections."""
        for client in self._clients:
            client.close()

    def _send(self, request: Request) -> None:
        if self.idle:
            self.idle.pop().send(request, self._data)
        else:
            task = asyncio.ensure_future(self._open(request))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, request: Request) -> None:
        try:
            _, client = await asyncio.get_running_loop().create_connection(
                lambda: _Client(self), "127.0.0.1", self._port
            )
        except OSError:
            self.answered(request, 0)
            return
        self._clients.append(client)
        client.send(request, self._data)
