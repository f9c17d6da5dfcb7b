"""The end of a process whose place another has taken: clients that keep connections are told, and none is cut off."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from harness import until

from mosec_asgi.host import draining
from mosec_asgi.host.draining import SILENCE_SECONDS, DrainingServer, drain
from mosec_asgi.web.uvicorn.gathering import gathering
from mosec_asgi.web.uvicorn.http1 import Http1Protocol

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
KINDS: list[Any] = ["auto", gathering(Http1Protocol)]
if importlib.util.find_spec("zttp") is not None:
    from mosec_asgi.web.uvicorn.http2 import AutoProtocol

    KINDS.append(gathering(AutoProtocol))
PROTOCOLS = pytest.mark.parametrize("http", KINDS)


class App:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def served(app: App, http: Any) -> AsyncIterator[tuple[uvicorn.Server, socket.socket, asyncio.Task[None]]]:
    """Run uvicorn on a socket of which this test, as the other process, has a copy of its own."""
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    runner = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.ensure_future(runner._serve([listening.dup()]))
        await until(lambda: runner.started, "it does not start")
        try:
            yield runner, listening, serving
        finally:
            app.may_answer.set()
            runner.should_exit = True
            await serving


async def head_of(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert await reader.readexactly(2) == b"ok"
    return head.lower()


@PROTOCOLS
async def test_a_silent_connections_next_request_is_answered_and_says_that_it_is_the_last(http: Any) -> None:
    async with served(App(), http) as (runner, listening, serving):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(REQUEST)
        assert b"connection: close" not in await head_of(reader)
        ending = asyncio.ensure_future(drain(runner, SILENCE_SECONDS))
        await asyncio.sleep(0)
        writer.write(REQUEST)
        assert b"connection: close" in await head_of(reader)
        writer.close()
        await ending
        assert runner.should_exit
        await serving
        assert not runner.server_state.connections


@PROTOCOLS
async def test_what_runs_is_answered_and_what_comes_is_left_to_the_other_process(http: Any) -> None:
    app = App()
    async with served(app, http) as (runner, listening, serving):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        app.may_answer.clear()
        writer.write(REQUEST)
        await until(lambda: app.asked == 1, "the request does not come")
        await drain(runner, SILENCE_SECONDS)
        _, late = await asyncio.open_connection(*listening.getsockname())
        late.write(REQUEST)
        app.may_answer.set()
        await head_of(reader)
        await serving
        assert app.asked == 1
        listening.settimeout(5)
        connection, _ = await asyncio.to_thread(listening.accept)
        with connection:
            assert connection.recv(4) == REQUEST[:4]
        writer.close()
        late.close()


async def test_a_connection_that_stays_silent_does_not_hold_the_end_up() -> None:
    async with served(App(), "auto") as (runner, listening, serving):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(REQUEST)
        await head_of(reader)
        await drain(runner, SILENCE_SECONDS)
        await serving
        assert await reader.read() == b""
        writer.close()


@asynccontextmanager
async def stopping(stop_delay: float) -> AsyncIterator[tuple[DrainingServer, list[str], Any, Any, asyncio.Task[None]]]:
    """Have a client with a silent connection when a server is told to stop."""
    said: list[str] = []
    config = uvicorn.Config(
        App(), lifespan="off", log_config=None, timeout_graceful_shutdown=5, timeout_keep_alive=3600
    )
    runner = DrainingServer(config, lambda: said.append("no more"), stop_delay)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.ensure_future(runner._serve([listening.dup()]))
        await until(lambda: runner.started, "it does not start")
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(REQUEST)
        await head_of(reader)
        runner.should_exit = True
        try:
            yield runner, said, reader, writer, serving
        finally:
            writer.close()
            await serving


async def test_a_stop_waits_as_long_as_it_is_told_and_no_longer_than_there_is_somebody_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draining, "SILENCE_SECONDS", 0)
    async with stopping(3600) as (runner, said, reader, writer, serving):
        await until(lambda: not any(server.is_serving() for server in runner.servers), "it still takes connections")
        assert not said
        writer.write(REQUEST)
        assert b"connection: close" in await head_of(reader)
        await asyncio.wait_for(serving, 20)
        assert said == ["no more"]


async def test_a_stop_without_a_delay_closes_silent_connections_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SILENCE_SECONDS", 3600)
    async with stopping(0) as (_, said, reader, _, serving):
        await asyncio.wait_for(serving, 20)
        assert said == ["no more"]
        assert await reader.read() == b""
