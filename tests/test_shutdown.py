"""The end of a service, however it runs and however it is told: what was accepted is answered, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Program, benchmark, child_processes, serving, until, wait_until
from workers import Echo, Raw

from mosec_asgi import Server

connection, leftovers = benchmark("connection"), benchmark("leftovers")

EACH_WAY_TO_RUN = pytest.mark.parametrize("by", ["run", "uvicorn", "mounted"])
# Seconds. A request that is written so long before a signal has been read by the server, whatever else it does.
READ = 0.1
STAGES = """
    server.append_worker(Counted)
    server.append_worker(Nap, max_batch_size=8, max_wait_time=1, route="/nap")
"""


def once(program: Program) -> None:
    program.send(signal.SIGTERM)


def again_while_it_ends(program: Program) -> None:
    program.send(signal.SIGTERM)
    # A program that has ended already would not show what the second one does.
    time.sleep(0.02)
    assert program.process.poll() is None
    program.send(signal.SIGTERM)


def ctrl_c(program: Program) -> None:
    os.killpg(program.process.pid, signal.SIGINT)


@contextlib.contextmanager
def leaving_nothing(folder: Path) -> Iterator[dict[str, str]]:
    """Make sure that what runs in the block, with the environment that it is given, leaves no file behind."""
    temporary = folder / "tmp"
    temporary.mkdir()
    before = leftovers.leftovers()
    yield {"TMPDIR": str(temporary), "MOSEC_TIMEOUT": "20000"}
    assert list(temporary.iterdir()) == []
    # Others may use shared memory on this machine at the same time, but not for long.
    new = leftovers.leftovers() - before
    wait_until(lambda: not new & leftovers.leftovers(), f"{new} are left in {leftovers.SHARED_MEMORY}")


def can_listen(port: int) -> bool:
    """Whether nobody listens on a port any more."""
    with socket.socket() as successor:
        successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            successor.bind(("0.0.0.0", port))
            successor.listen()
        except OSError:
            return False
        return True


# -- under load --------------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """A request of a client: when its last byte was written, when it ended, and how (None: it was not answered)."""

    written: float
    ended: float = 0.0
    status: int | None = None


async def ask_for_ever(port: int, path: str, name: Path, requests: list[Request]) -> None:
    """Send request after request, on one connection as long as that lives, until nobody listens."""
    while True:
        try:
            link = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        client = connection.Connection(*link)
        with contextlib.suppress(connection.Lost):
            while True:
                await client.send(path, json.dumps(str(name)).encode())
                requests.append(request := Request(time.monotonic()))
                try:
                    request.status = (await client.receive()).status
                finally:
                    request.ended = time.monotonic()
        await client.close()


@EACH_WAY_TO_RUN
@pytest.mark.parametrize("end", [once, again_while_it_ends, ctrl_c], ids=lambda end: end.__name__)
async def test_under_load_what_was_accepted_before_the_end_is_answered(
    tmp_path: Path, by: str, end: Callable[[Program], None]
) -> None:
    """Accepted is a request of which every byte was written, on a connection that had been accepted, before the signal.

    (The server is given a tenth of a second to read it. The next test does without.)

    What comes later is answered as well, or refused with 503, or finds its connection closed; and of all requests
    exactly those have been run that were answered 200.
    """
    runs, naps = tmp_path / "runs", tmp_path / "naps"
    prefix = "/ml" if by == "mounted" else ""
    requests: list[Request] = []
    with leaving_nothing(tmp_path) as environment, serving(tmp_path, STAGES, by=by, environment=environment) as program:
        clients = [
            asyncio.ensure_future(ask_for_ever(program.port, prefix + path, name, requests))
            for path, name in [("/inference", runs), ("/nap", naps)] * 8
        ]

        def waiting() -> list[Request]:
            return [r for r in requests if not r.ended and r.written < time.monotonic() - READ]

        await until(lambda: len(requests) > 500 and waiting(), "nobody waits for an answer")
        accepted = waiting()
        await asyncio.to_thread(end, program)
        code = await asyncio.to_thread(program.wait)
        await asyncio.gather(*clients)
        # uvicorn ends itself by the signal that it was sent, as programs should that were told so.
        assert code in ((0,) if by == "run" else (0, -signal.SIGTERM, -signal.SIGINT, 130))
        assert can_listen(program.port)
        assert "Traceback" not in program.output

    assert {request.status for request in accepted} == {200}
    assert {request.status for request in requests} <= {200, 503, None}
    answered = sum(request.status == 200 for request in requests)
    assert answered == runs.stat().st_size + naps.stat().st_size


def test_requests_that_the_server_had_not_read_when_the_signal_came_are_answered(tmp_path: Path) -> None:
    """The server is stopped, so that requests and signal lie there together when it goes on."""
    with leaving_nothing(tmp_path) as environment, serving(tmp_path, STAGES, environment=environment) as program:
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", program.port)
            clients = [stack.enter_context(socket.create_connection(address, 20)) for _ in range(8)]
            body = json.dumps(str(tmp_path / "runs")).encode()
            request = b"POST /inference HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            for client in clients:
                # The server has accepted each of the connections.
                client.sendall(request)
                assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
            program.send(signal.SIGSTOP)
            for client in clients:
                client.sendall(request)
            program.send(signal.SIGTERM)
            program.send(signal.SIGCONT)
            assert [client.recv(1000)[:12] for client in clients] == [b"HTTP/1.1 200"] * 8
        assert program.wait() == 0


async def test_clients_that_keep_connections_lose_no_request_to_a_stop(tmp_path: Path) -> None:
    """Each is told by an answer that its connection ends, or finds it closed while it is silent; none gets 503."""
    lost: list[str] = []
    closed = 0

    async def ask(port: int) -> None:
        nonlocal closed
        async with connection.connected(port) as link:
            while True:
                try:
                    answer = await link.ask("/inference", json.dumps(str(tmp_path / "runs")).encode())
                except connection.Lost as error:
                    lost.append(str(error))
                    return
                if answer.status != 200:
                    lost.append(f"{answer.status} {answer.text}")
                if answer.headers.get("connection") == "close":
                    closed += 1
                    return
                await asyncio.sleep(0.01)

    with serving(tmp_path, STAGES) as program:
        clients = [asyncio.ensure_future(ask(program.port)) for _ in range(8)]
        await until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").stat().st_size > 100, "no load")
        program.send(signal.SIGTERM)
        await asyncio.gather(*clients)
        assert (lost, closed) == ([], 8)
        assert await asyncio.to_thread(program.wait) == 0


def test_a_stop_is_announced_at_readyz_while_requests_are_still_answered(tmp_path: Path) -> None:
    with serving(tmp_path, STAGES) as program:
        probe, client = (http.client.HTTPConnection("127.0.0.1", program.port, timeout=20) for _ in range(2))
        body = json.dumps(str(tmp_path / "runs"))

        def asked(link: http.client.HTTPConnection, method: str, path: str, body: str = "") -> int:
            link.request(method, path, body)
            with link.getresponse() as answer:
                answer.read()
                return answer.status

        assert asked(probe, "GET", "/readyz") == asked(client, "POST", "/inference", body) == 200
        program.send(signal.SIGTERM)
        wait_until(lambda: asked(probe, "GET", "/readyz") == 503, "/readyz does not say so")
        assert asked(client, "POST", "/inference", body) == 200
        probe.close()
        client.close()
        assert program.wait() == 0


def test_without_a_delay_of_the_stop_requests_are_refused_from_the_signal_on(tmp_path: Path) -> None:
    def asked(link: http.client.HTTPConnection, method: str, path: str, body: str = "") -> int | None:
        """Return the status; None where the connection is closed."""
        if link.sock is None:
            return None
        try:
            link.request(method, path, body)
            with link.getresponse() as answer:
                answer.read()
                return answer.status
        except (OSError, http.client.HTTPException):
            link.close()
            return None

    body = json.dumps(str(tmp_path / "runs"))
    with (
        serving(tmp_path, STAGES, environment={"MOSEC_STOP_DELAY": "0"}) as program,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", program.port, timeout=20)) as probe,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", program.port, timeout=20)) as client,
    ):
        for link in (probe, client):
            link.connect()
        assert asked(probe, "GET", "/readyz") == asked(client, "POST", "/inference", body) == 200
        program.send(signal.SIGTERM)
        wait_until(lambda: asked(probe, "GET", "/readyz") != 200, "/readyz does not say so")
        assert asked(client, "POST", "/inference", body) in (503, None)
        assert program.wait() == 0


@EACH_WAY_TO_RUN
async def test_a_server_that_is_killed_under_load_leaves_nothing(tmp_path: Path, by: str) -> None:
    prefix = "/ml" if by == "mounted" else ""
    requests: list[Request] = []
    with leaving_nothing(tmp_path) as environment, serving(tmp_path, STAGES, by=by, environment=environment) as program:
        clients = [
            asyncio.ensure_future(ask_for_ever(program.port, prefix + path, tmp_path / "runs", requests))
            for path in ["/inference", "/nap"] * 8
        ]
        await until(lambda: len(requests) > 100, "the clients are not answered")
        program.send(signal.SIGKILL)
        assert await asyncio.to_thread(program.wait) == -signal.SIGKILL
        await asyncio.to_thread(program.assert_nothing_left, 10.0)
        await asyncio.gather(*clients)
        assert can_listen(program.port)
        assert {request.status for request in requests} == {200, None}


# -- in a process that goes on -----------------------------------------------------------------------------------------


def open_descriptors() -> list[str]:
    """Return what this process has open, sockets and pipes without their numbers."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        # The listing has a descriptor itself, which is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r"\d+", "", os.readlink(entry)))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_service_that_ran_in_this_process_leaves_no_thread_no_process_and_no_descriptor(tmp_path: Path) -> None:
    from fastapi import FastAPI

    async def live() -> None:
        server = Server(compression=True)
        server.append_worker(Echo, num=2)
        server.append_worker(Raw, route="/raw", start_method="fork")
        app = FastAPI(lifespan=server.lifespan)
        app.mount("/ml", server)
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as c:
            answers = await asyncio.gather(*(c.post("/ml/inference", json=number) for number in range(50)))
            assert [answer.json()["echo"] for answer in answers] == list(range(50))
            large = b"x" * 3_000_000
            assert (await c.post("/ml/raw", content=large)).content == large
            assert (await c.get("/ml/metrics")).status_code == 200

    def possessions() -> dict[str, Any]:
        return {
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "native threads": len(os.listdir("/proc/self/task")),
            "descriptors": open_descriptors(),
            "processes": sorted(child_processes(os.getpid())),
        }

    # `multiprocessing` starts a process of its own with the first spawned worker, and keeps it.
    asyncio.run(live())
    before = possessions()
    asyncio.run(live())
    wait_until(lambda: possessions() == before, f"{possessions()} instead of {before}", 5.0)
