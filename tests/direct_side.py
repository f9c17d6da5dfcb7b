"""A service over HTTP/1.1 between a scripted engine and clients that say each byte themselves."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import uvicorn
from common import PATIENCE, until
from fake_engine import FakeEngine, FakeTask
from starlette.types import Receive, Scope, Send

from mosec_asgi.errors import Failure
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.web.app import App
from mosec_asgi.web.direct import DirectRoutes
from mosec_asgi.web.limits import DEFAULT, Limits
from mosec_asgi.web.protocols import plain
from mosec_asgi.web.uvicorn.gathering import gathering
from mosec_asgi.web.uvicorn.http1 import Http1Protocol

LIMIT = 3_000_000
# More than one read brings.
LARGE = b"~" * 2_000_000
# More than all buffers between the server and a client hold.
FLOOD = b"~" * 30_000_000


ROUTES = [
    ("/json", "application/json", False),
    ("/raw", "x/100%d", False),
    ("/stream", "text/event-stream", True),
    ("/a%b", "application/json", False),
]


class Response(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    @property
    def comparable(self) -> tuple[object, ...]:
        """All that does not depend on when it was asked."""
        made = re.compile("[0-9a-f]{32}")
        headers = [(name, "made" if made.fullmatch(value) else value) for name, value in self.headers]
        return self.status, [header for header in headers if header[0] != "date"], self.body


class Client:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def until(self, mark: bytes) -> bytes:
        """Read to a mark."""
        return await asyncio.wait_for(self._reader.readuntil(mark), PATIENCE)

    async def response(self) -> Response:
        lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]
        length = int(dict(headers)["content-length"])
        body = await asyncio.wait_for(self._reader.readexactly(length), PATIENCE)
        return Response(int(lines[0].split()[1]), headers, body)

    async def at_end(self) -> bool:
        """Wait for the next byte; whether there is none."""
        return await asyncio.wait_for(self._reader.read(1), PATIENCE) == b""

    async def rest(self) -> bytes:
        """Read to the end."""
        return await asyncio.wait_for(self._reader.read(), PATIENCE)

    def end_sending(self) -> None:
        """Close one way: nothing more is sent."""
        self._writer.write_eof()

    def stop_reading(self) -> None:
        self._writer.transport.pause_reading()

    def read_on(self) -> None:
        self._writer.transport.resume_reading()

    async def drain(self) -> None:
        """Wait until what was sent has left."""
        await asyncio.wait_for(self._writer.drain(), PATIENCE)

    def leave(self) -> None:
        self._writer.transport.abort()


class Side:
    """A service under uvicorn.

    Attributes:
        asked: the requests that came through ASGI.
    """

    def __init__(self, service: FakeEngine, port: int, **options: Any) -> None:
        self.service = service
        self.metrics = ServiceMetrics("test", [])
        self.asked = 0
        self.server: uvicorn.Server
        self._port = port
        routes = options.pop("routes", lambda new_id: plain.routes(ROUTES, new_id))
        defaults = {"max_request_size": LIMIT, "compressed": False, "server": "test/1%"}
        self._app = App(routes(service.new_id), service, self.metrics, dict, **{**defaults, **options})

    def direct_routes(self) -> DirectRoutes:
        return self._app.direct_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await self._app.outermost(scope, receive, send)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 16)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def task(self, number: int = 1) -> FakeTask:
        """Wait until so many requests are admitted, and return the last."""
        await until(lambda: len(self.service.tasks) == number)
        return self.service.tasks[-1]


@asynccontextmanager
async def serving(
    protocol: type[asyncio.Protocol] = Http1Protocol,
    service: FakeEngine | None = None,
    *,
    gathers: bool = True,
    limits: Limits = DEFAULT,
    app: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Side]:
    """Serve for the time of a block; at its end nothing may be left of it."""
    sock = socket.create_server(("127.0.0.1", 0))
    side = Side(service or FakeEngine(), sock.getsockname()[1], **{"limits": limits, **(app or {})})
    options: dict[str, Any] = {"interface": "asgi3", "lifespan": "off", "ws": "none", "log_config": None}
    options |= {"access_log": False, "proxy_headers": False, "server_header": False, **settings}
    options["http"] = gathering(protocol, limits) if gathers else protocol
    side.server = uvicorn.Server(uvicorn.Config(side, **options))
    running = asyncio.create_task(side.server.serve(sockets=[sock]))
    try:
        await until(lambda: side.server.started)
        yield side
        assert side.service.statistics().admitted == 0
        await until(lambda: not side.server.server_state.connections)
    finally:
        # Of a test that has failed there may be connections, for which it would wait.
        side.server.should_exit = side.server.force_exit = True
        await running


def post(body: bytes = b"[1]", path: str = "/json", version: str = "1.1", **headers: str) -> bytes:
    lines = {"Host": "test", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
    return f"POST {path} HTTP/{version}\r\n{head}\r\n".encode() + body


async def answered(side: Side, request: bytes, outcome: bytes | Failure | None) -> Response:
    """Return what a request is answered, which is admitted where there is an outcome for it."""
    async with side.client() as client:
        client.send(request)
        if outcome is not None:
            (await side.task()).end(outcome)
        return await client.response()
