"""Clients that leave, at whatever moment: nothing is run for them that had not begun, and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from harness import DEADLINE, Program, python, running, until, wait_until, written
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from workers import Gate

from mosec_asgi import Server

APP = """
    from mosec_asgi import Server
    from workers import Echo, Gate

    server = Server(timeout=60_000)
    server.append_worker(Gate, route="/gate")
    server.append_worker(Echo, route="/echo")

    if __name__ == "__main__":
        server.run()
"""
UVICORN = [str(Path(sys.executable).parent / "uvicorn"), "app:server", "--port", "{port}", "--http", "httptools"]
WAITING = "waiting at the gate"


@pytest.fixture(scope="module", params=["run()", "uvicorn-httptools"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A program that the module's tests share; each must leave it as it was."""
    folder = tmp_path_factory.mktemp("program")
    app = written(folder, textwrap.dedent(APP), "app.py")
    command = python(app) if request.param == "run()" else UVICORN
    with running(command, folder / "output.log", cwd=folder) as program:
        program.wait_ready()
        yield program


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "program" in request.fixturenames:
        program: Program = request.getfixturevalue("program")
        wait_until(lambda: remaining(program) == 0, "a request is left behind")


def metric(program: Program, name: str) -> int:
    """Return a metric of the program, 0 where there is none yet."""
    found = re.search(rf"^mosec_service_{re.escape(name)} (\d+)", program.client.get("/metrics").text, re.MULTILINE)
    return int(found[1]) if found else 0


def remaining(program: Program) -> int:
    """Return how many requests are admitted and not yet answered."""
    return metric(program, "remaining_task")


def echoes(program: Program) -> int:
    """Return how many requests the worker of `/echo` has run."""
    return metric(program, 'process_duration_second_count{connection="1",stage="Echo_2"}')


def post(path: str, value: object) -> bytes:
    """Return a request as it goes over the wire."""
    body = json.dumps(value).encode()
    return b"POST %s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


@contextlib.contextmanager
def connected(program: Program) -> Iterator[socket.socket]:
    """Connect to a program without a client that would hide how the bytes travel."""
    with socket.create_connection(("127.0.0.1", program.port), DEADLINE) as connection:
        yield connection


def break_off(connection: socket.socket) -> None:
    """End a connection by a reset, as a client does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextlib.contextmanager
def slow_request(program: Program, gate: Path) -> Iterator[None]:
    """Keep the worker of `/gate` busy for the time of a block, with a request that is answered in the end."""
    begun = program.output.count(WAITING)
    with ThreadPoolExecutor(1) as threads:
        request = threads.submit(program.client.post, "/gate", json=str(gate))
        try:
            wait_until(lambda: program.output.count(WAITING) == begun + 1, "the slow request does not begin")
            yield
        finally:
            gate.touch()
        assert request.result().json() == "opened"


@pytest.mark.parametrize("ending", [socket.socket.close, break_off], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "upload",
    [
        b"transfer-encoding: chunked\r\n\r\n3\r\n[1,\r\n",
        b"transfer-encoding: chunked\r\n\r\n3\r\n[1,\r\n10\r\nhalf",
        b"transfer-encoding: chunked\r\n\r\n",
        b"content-length: 100\r\n\r\n[1,",
        b"content-length: 100\r\n\r\n",
    ],
    ids=["between chunks", "within a chunk", "before all chunks", "within the body", "before the body"],
)
def test_an_upload_that_stops_half_way_is_never_run(
    program: Program, upload: bytes, ending: Callable[[socket.socket], None]
) -> None:
    before, printed = echoes(program), len(program.output)
    for _ in range(5):
        with connected(program) as connection:
            connection.sendall(b"POST /echo HTTP/1.1\r\nhost: test\r\n" + upload)
            ending(connection)
    assert program.client.post("/echo", json=1).json()["echo"] == 1
    assert remaining(program) == 0
    assert echoes(program) == before + 1
    assert "Traceback" not in program.output[printed:]


def test_two_requests_in_one_write_are_both_answered_in_order(program: Program, tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", program.output.count(WAITING)
    with connected(program) as connection:
        # The second would be done at once.
        connection.sendall(post("/gate", str(gate)) + post("/echo", "second"))
        wait_until(lambda: program.output.count(WAITING) == begun + 1, "the first request does not begin")
        gate.touch()
        received = b""
        while b'"second"' not in received:
            received += connection.recv(10_000)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert received.index(b'"opened"') < received.index(b'"second"')


def test_a_client_that_leaves_with_one_request_running_and_one_behind_it_leaves_nothing(
    program: Program, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    gate, begun, before = tmp_path / "gate", program.output.count(WAITING), echoes(program)
    printed = len(program.output)
    with connected(program) as connection:
        connection.sendall(post("/gate", str(gate)) + post("/echo", "second"))
        wait_until(lambda: program.output.count(WAITING) == begun + 1, "the first request does not begin")
    if "httptools" in request.node.callspec.id:
        # uvicorn tells there only the newest request of a connection that its client has left. The first is answered,
        # in vain, and with a traceback of uvicorn's under uvloop.
        gate.touch()
        wait_until(lambda: remaining(program) == 0, "its place is not freed")
    else:
        wait_until(lambda: remaining(program) == 0, "its place is not freed")
        gate.touch()
        assert "Traceback" not in program.output[printed:]
    assert program.client.post("/gate", json=str(gate)).json() == "opened"
    assert echoes(program) == before


def test_clients_that_leave_while_they_wait_in_the_queue_are_never_run(program: Program, tmp_path: Path) -> None:
    gate, begun, others = tmp_path / "gate", program.output.count(WAITING), 20
    with slow_request(program, gate):
        with contextlib.ExitStack() as connections:
            for _ in range(others):
                connections.enter_context(connected(program)).sendall(post("/gate", str(gate)))
            wait_until(lambda: remaining(program) == others + 1, "the requests are not all accepted")
            printed = len(program.output)
        wait_until(lambda: remaining(program) == 1, "their places are not freed")
        # The one that is at work is not disturbed.
        assert program.output.count(WAITING) == begun + 1
    assert program.client.post("/gate", json=str(gate)).json() == "opened"
    assert program.output.count(WAITING) == begun + 2
    assert "Traceback" not in program.output[printed:]


# -- in one process ----------------------------------------------------------------------------------------------------


class TimeoutMiddleware:
    """Answers 504 where the app below takes too long, and gives up on it."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await asyncio.wait_for(self._app(scope, receive, send), self._seconds)
        except asyncio.TimeoutError:
            await PlainTextResponse("too slow for the parent app", 504)(scope, receive, send)


async def test_a_timeout_of_the_parent_app_leaves_nothing_behind(tmp_path: Path) -> None:
    server, gate = Server(timeout=60_000), tmp_path / "gate"
    server.append_worker(Gate)
    app = Starlette(
        routes=[Mount("/ml", server)],
        middleware=[Middleware(TimeoutMiddleware, seconds=0.2)],
        lifespan=server.lifespan,
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE) as client,
    ):

        async def remaining() -> int:
            text = (await client.get("/ml/metrics")).text
            found = re.search(r"^mosec_service_remaining_task (\d+)", text, re.MULTILINE)
            assert found
            return int(found[1])

        before = asyncio.all_tasks()
        answers = await asyncio.gather(*(client.post("/ml/inference", json=str(gate)) for _ in range(5)))
        assert {(answer.status_code, answer.text) for answer in answers} == {(504, "too slow for the parent app")}
        assert await remaining() == 0
        await until(lambda: asyncio.all_tasks() == before, "tasks are left behind")
        gate.touch()
