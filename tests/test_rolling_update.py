"""Services behind nginx, by the file that docker/ has for it: replaced one after the other, they lose no request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

from harness import ROOT, Program, benchmark, free_port, python, running, until, written
from proxies import needs_nginx, nginx

pytestmark = needs_nginx
connection = benchmark("connection")

FILE = ROOT / "docker" / "nginx.conf"
ADDRESSES = ("127.0.0.1:8001", "127.0.0.1:8002")
REQUESTS = 10_000
CLIENTS = 16
SERVICE = """
import os
import time

from mosec_asgi import Server, SSEWorker, Worker


class Add(Worker):
    def forward(self, data: int) -> list[int]:
        return [data + 1, os.getppid()]


class Slow(Worker):
    def forward(self, data: list[int]) -> list[list[int]]:
        time.sleep(0.1)
        return [[number + 1, os.getppid()] for number in data]


class Count(SSEWorker):
    def forward(self, data: int):
        for number in range(data):
            yield str(number)
            # Until the test has seen that one.
            while number == 0 and not os.path.exists("seen"):
                time.sleep(0.01)


server = Server()
server.append_worker(Add)
server.append_worker(Slow, max_batch_size=16, route="/slow")
server.append_worker(Count, route="/stream")

if __name__ == "__main__":
    server.run()
"""


def configured(listen: int, *ports: int) -> str:
    """Return the file with ports of this test in the place of its own."""
    text = FILE.read_text()
    changes = [("listen 8000", f"listen 127.0.0.1:{listen}")]
    changes += [(address, f"127.0.0.1:{port}") for address, port in zip(ADDRESSES, ports, strict=True)]
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@dataclass
class Load:
    """Clients on connections that they keep, each with one request at a time.

    Attributes:
        answered: how many requests had the right answer.
        failed: what went wrong with the others.
        servers: the processes that have answered.
        enough: no further requests are sent, once there are as many as there should be.
    """

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    servers: set[int] = field(default_factory=set)
    enough: bool = False

    async def run(self, port: int) -> None:
        paths = ["/slow"] * 4 + ["/inference"] * (CLIENTS - 4)
        await asyncio.gather(*(self._client(port, path) for path in paths))

    async def _client(self, port: int, path: str) -> None:
        while not await self._ask_on_one_connection(port, path):
            pass

    async def _ask_on_one_connection(self, port: int, path: str) -> bool:
        """Return whether that was all; nginx ends a client's connection after so many requests."""
        async with connection.connected(port) as link:
            while not (self.enough and self.answered >= REQUESTS):
                number = self.answered
                try:
                    answer = await link.ask(path, b"%d" % number)
                except connection.Lost as error:
                    self.failed.append(str(error))
                    return True
                if answer.status != 200 or json.loads(answer.body)[0] != number + 1:
                    self.failed.append(f"{path}: {answer.status} {answer.text}")
                    continue
                self.servers.add(json.loads(answer.body)[1])
                self.answered += 1
                if answer.headers.get("connection") == "close":
                    return False
        return True


def service(folder: Path, port: int, log: str) -> contextlib.AbstractContextManager[Program]:
    return running(python(folder / "server.py"), folder / log, port=port, cwd=folder)


async def replaced(stack: contextlib.ExitStack, program: Program, folder: Path, load: Load, log: str) -> Program:
    """End a service in good order while it is asked, and start another in its place."""
    before = load.answered
    await until(lambda: load.answered > before + 1000, "no load")
    program.send(signal.SIGTERM)
    assert await asyncio.to_thread(program.wait) == 0
    successor = stack.enter_context(service(folder, program.port, log))
    await asyncio.to_thread(successor.wait_ready)
    await until(lambda: successor.process.pid in load.servers, "the new one is not asked")
    return successor


async def test_no_request_of_ten_thousand_fails_while_each_service_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, SERVICE)
    listen, *ports = (free_port() for _ in range(3))
    load = Load()
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(service(tmp_path, port, f"{port}.log")) for port in ports]
        for program in services:
            await asyncio.to_thread(program.wait_ready)
        stack.enter_context(nginx(tmp_path, listen, configured(listen, *ports)))
        asking = asyncio.ensure_future(load.run(listen))
        new = [await replaced(stack, program, tmp_path, load, f"{program.port}-new.log") for program in services]
        load.enough = True
        await asking
    assert load.failed == []
    assert load.answered >= REQUESTS
    assert load.servers == {program.process.pid for program in (*services, *new)}


def test_the_events_of_a_stream_pass_as_they_come(tmp_path: Path) -> None:
    written(tmp_path, SERVICE)
    listen, port, nobody = (free_port() for _ in range(3))
    with service(tmp_path, port, "log") as program:
        program.wait_ready()
        with (
            nginx(tmp_path, listen, configured(listen, nobody, port)) as client,
            client.stream("POST", "/stream", json=3) as answer,
        ):
            pieces = answer.iter_text()
            assert next(pieces) == "data: 0\n\n"
            (tmp_path / "seen").touch()
            assert "".join(pieces) == "data: 1\n\ndata: 2\n\n"
            assert client.get("/metrics").status_code == 404
