"""Which connections are closed as silent when the server stood still, on the event loop that `server.run()` uses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest
import uvicorn
import uvloop
from common import PATIENCE
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from mosec_asgi.web.limits import Limits
from mosec_asgi.web.uvicorn.gathering import gathering
from mosec_asgi.web.uvicorn.http1 import Http1Protocol

# Seconds.
KEEP_ALIVE = 0.3
REQUEST = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


def automatic() -> type[asyncio.Protocol]:
    pytest.importorskip("zttp", reason="the extra http2 is not installed")
    from mosec_asgi.web.uvicorn.http2 import AutoProtocol

    return AutoProtocol


EACH_PROTOCOL = pytest.mark.parametrize("protocol", [automatic, lambda: Http1Protocol], ids=["auto", "http1"])


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(2 * KEEP_ALIVE)
    await app(scope, receive, send)


class Connection:
    """A client's connection, accepted by the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Return what comes next, nothing at the end."""
        return await asyncio.wait_for(self._loop.sock_recv(self.sock, 1000), PATIENCE)

    async def ask(self) -> bytes:
        """Send a request, and return its answer."""
        self.sock.send(REQUEST)
        return await self.read()

    async def stand_still(self, seconds: float, sent: bytes = b"") -> None:
        """Send something, and keep the loop from reading it for so long."""
        stood_still = asyncio.Event()

        def stand_still() -> None:
            self._loop.remove_reader(here)
            if sent:
                self.sock.send(sent)
            time.sleep(seconds)
            stood_still.set()

        # While the loop handles what has come from sockets: its timers are next, and then sockets again.
        here, there = socket.socketpair()
        with here, there:
            self._loop.add_reader(here, stand_still)
            there.send(b"1")
            await stood_still.wait()


@contextlib.asynccontextmanager
async def connected(protocol: type[asyncio.Protocol], app: ASGIApp = app) -> AsyncIterator[Connection]:
    loop, accepted = asyncio.get_running_loop(), asyncio.Event()
    config = uvicorn.Config(app, interface="asgi3", lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    class Noted(gathering(protocol, Limits(keep_alive=KEEP_ALIVE))):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            accepted.set()

    server = await loop.create_server(lambda: Noted(config, state, {}), "127.0.0.1", 0)
    try:
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, server.sockets[0].getsockname())
            await asyncio.wait_for(accepted.wait(), PATIENCE)
            yield Connection(sock)
    finally:
        server.close()
        await server.wait_closed()


def on_uvloop(main: Coroutine[None, None, None]) -> None:
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


@EACH_PROTOCOL
@pytest.mark.parametrize("late", [0.01, 0.5], ids=["nearly in time", "late"])
def test_a_first_request_that_came_while_the_server_stood_still_is_answered(
    protocol: Callable[[], type[asyncio.Protocol]], late: float
) -> None:
    async def main() -> None:
        async with connected(protocol()) as connection:
            await connection.stand_still(KEEP_ALIVE + late, REQUEST)
            assert (await connection.read()).endswith(b"done")

    on_uvloop(main())


@EACH_PROTOCOL
@pytest.mark.parametrize("late", [0.01, 0.5], ids=["nearly in time", "late"])
def test_a_next_request_that_came_while_the_server_stood_still_is_answered(
    protocol: Callable[[], type[asyncio.Protocol]], late: float
) -> None:
    async def main() -> None:
        async with connected(protocol()) as connection:
            assert (await connection.ask()).endswith(b"done")
            await connection.stand_still(KEEP_ALIVE + late, REQUEST)
            assert (await connection.read()).endswith(b"done")

    on_uvloop(main())


@EACH_PROTOCOL
def test_a_client_that_stood_still_with_the_server_has_its_time_again(
    protocol: Callable[[], type[asyncio.Protocol]],
) -> None:
    async def main() -> None:
        async with connected(protocol()) as connection:
            for _ in range(2):
                await connection.stand_still(KEEP_ALIVE + 0.5)
                # The timers that are due have run.
                await asyncio.sleep(KEEP_ALIVE / 10)
                assert (await connection.ask()).endswith(b"done")

    on_uvloop(main())


@EACH_PROTOCOL
def test_a_connection_without_a_next_request_is_closed(protocol: Callable[[], type[asyncio.Protocol]]) -> None:
    async def main() -> None:
        async with connected(protocol()) as connection:
            assert (await connection.ask()).endswith(b"done")
            assert await connection.read() == b""

    on_uvloop(main())


@EACH_PROTOCOL
def test_the_time_counts_from_the_last_answer(protocol: Callable[[], type[asyncio.Protocol]]) -> None:
    async def main() -> None:
        async with connected(protocol()) as connection:
            loop = asyncio.get_running_loop()
            for _ in range(4):
                assert (await connection.ask()).endswith(b"done")
                last = loop.time()
                # So that timers which count from answers before are due in between.
                await asyncio.sleep(KEEP_ALIVE * 0.6)
            assert await connection.read() == b""
            # uvloop's timers know whole milliseconds.
            assert loop.time() - last >= KEEP_ALIVE - 0.002

    on_uvloop(main())


@EACH_PROTOCOL
def test_a_request_that_takes_long_is_no_silence(protocol: Callable[[], type[asyncio.Protocol]]) -> None:
    async def main() -> None:
        async with connected(protocol(), slow) as connection:
            # The second comes in time, and its answer later than a silence may last.
            for _ in range(2):
                assert (await connection.ask()).endswith(b"done")
            connection.sock.send(REQUEST + REQUEST)
            received = b""
            while received.count(b"done") < 2:
                received += (piece := await connection.read())
                assert piece, "closed before the answer"

    on_uvloop(main())


def test_a_connection_without_a_first_request_is_closed_also_when_the_server_stood_still() -> None:
    async def main() -> None:
        async with connected(automatic()) as connection:
            await connection.stand_still(KEEP_ALIVE + 0.5)
            assert await connection.read() == b""

    on_uvloop(main())
