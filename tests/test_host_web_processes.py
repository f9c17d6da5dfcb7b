"""What several web processes of a program share, and how many sockets they have."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import until

from mosec_asgi import Server, Worker
from mosec_asgi.config import Settings
from mosec_asgi.errors import DefinitionError
from mosec_asgi.host import engine, fork_server, listening
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.host.web_processes import MOST_FAILURES, WELL_SECONDS, _divided, _Web


def test_they_divide_the_memory_for_bodies_and_answers() -> None:
    of_one = _divided(Settings(http_processes=4, body_memory=4000))
    assert of_one.body_memory == 1000
    assert of_one.answer_memory == memory_limit() // 16


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not divide connections")
def test_each_has_a_queue_on_one_port_that_nobody_else_gets() -> None:
    listeners = listening.listen_often(Settings(address="127.0.0.1", port=0, http_processes=3), 3)
    try:
        [port] = {each.sock.getsockname()[1] for each in listeners}
        assert len({each.sock.fileno() for each in listeners}) == 3
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    finally:
        for each in listeners:
            each.close()


def test_at_a_path_they_share_one_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first, second = listening.listen_often(Settings(uds=str(path)), 2)
    assert first is second
    first.close()
    assert not path.exists()


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


def test_they_cannot_have_the_engine_of_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(http_processes=2, engine="/run/engine.sock")
    server.append_worker(Echo)
    monkeypatch.setattr(sys, "argv", ["server.py"])
    with pytest.raises(DefinitionError, match="says that another program has it; leave one of them out"):
        server.run()


@pytest.fixture
def control() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("others_serve", [False, True])
async def test_those_that_fail_end_the_program_unless_others_serve(
    control: tuple[socket.socket, socket.socket], others_serve: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    web = _Web(control[0], 2, 1.0)
    web.follow(ended.append)
    try:
        web._places[0].pid, web._places[0].started = 10, time.monotonic() - (WELL_SECONDS + 1) * others_serve
        for number in range(MOST_FAILURES + 1):
            web._places[1].pid, web._places[1].started = 100 + number, time.monotonic()
            web._has_ended(1, 3)
        assert bool(ended) is not others_serve
        # Once the program ends, no other is promised.
        assert len(ended) <= 1
        assert caplog.text.count("another is started") == (MOST_FAILURES + 1 if others_serve else MOST_FAILURES - 1)
    finally:
        asyncio.get_running_loop().remove_reader(control[0].fileno())


def test_a_fork_that_fails_is_told_and_ends_nothing(
    control: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    ours, theirs = control
    forks = fork_server._ForkServer(theirs, [], lambda index, connection, listener: 0)
    os.close(forks._woken)
    os.close(forks._wake)
    engine, web = socket.socketpair()
    with engine:
        socket.send_fds(ours, [fork_server.MESSAGE.pack(fork_server.FORK, 1, 0)], [web.fileno()])
        web.close()
        assert forks._hear()
        assert fork_server.MESSAGE.unpack(ours.recv(fork_server.MESSAGE.size)) == (fork_server.ENDED, 1, 0)
        # The engine does not wait for it.
        assert engine.recv(1) == b""
    # It is not blocked for the next one.
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ours.send(fork_server.MESSAGE.pack(fork_server.FORK, 1, 0))
    assert forks._hear()
    assert fork_server.MESSAGE.unpack(ours.recv(fork_server.MESSAGE.size)) == (fork_server.ENDED, 1, 0)


async def test_a_lack_of_descriptors_delays_a_web_process_and_does_not_lose_it(
    control: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair = socket.socketpair
    tried: list[int] = []

    def scarce(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        tried.append(1)
        if len(tried) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return pair(*arguments)

    monkeypatch.setattr(socket, "socketpair", scarce)
    taken: list[socket.socket] = []
    web = _Web(control[0], 1, 1.0)
    web.follow(lambda code: None)
    try:
        web.start(taken.append)
        await until(lambda: taken, "it is started")
        message, [descriptor], _, _ = socket.recv_fds(control[1], fork_server.MESSAGE.size, 1)
        assert fork_server.MESSAGE.unpack(message)[0] == fork_server.FORK
        os.close(descriptor)
        taken[0].close()
        assert caplog.text.count("no web process can be started: Too many open files; tried again in") == 1
    finally:
        asyncio.get_running_loop().remove_reader(control[0].fileno())


class Loading:
    """A server whose models take long."""

    on_daemon_exit: Any = None

    def __init__(self) -> None:
        self._closed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        await asyncio.wait_for(self._closed.wait(), 30)
        yield

    async def restart(self) -> None:
        raise NotImplementedError

    def announce_end(self) -> None:
        pass

    def close(self) -> None:
        self._closed.set()


def test_the_end_of_what_it_needs_is_not_delayed_by_models_that_load() -> None:
    def told(end: Callable[[int], object]) -> None:
        asyncio.get_running_loop().call_later(0.01, end, 7)

    assert engine.run(Loading(), lambda: None, told=told) == 7
