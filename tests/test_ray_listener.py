"""The port to which actors connect, and who else may try: nothing of theirs reaches a decoder, or pickle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from common import until

from mosec_asgi.ipc import frames
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.messages import Results
from mosec_asgi.pool.ray import handshake
from mosec_asgi.pool.ray.actor import connect
from mosec_asgi.pool.ray.handshake import HandshakeError
from mosec_asgi.pool.ray.listener import Expected, Listener
from mosec_asgi.pool.ray.orders import Order

SECRET = b"s" * handshake.SECRET_SIZE
TOKEN = b"t" * handshake.TOKEN_SIZE


class Touch:
    """A pickle that makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Port:
    """A listener, and what it has let in."""

    def __init__(self, **limits: Any) -> None:
        self.listener = Listener(asyncio.get_running_loop(), **limits)
        self.listener.open("127.0.0.1")
        assert self.listener.address is not None
        self.address = self.listener.address
        self.came: list[Any] = []
        self.expect_again()

    def expect_again(self) -> None:
        self.listener.expect(TOKEN, Expected(SECRET, lambda sock, host: self.came.append(sock)))

    def order(self, secret: bytes = SECRET, token: bytes = TOKEN) -> Order:
        return Order("", (), ("", ""), self.address, token, secret, {}, b"", "worker")

    async def connect(self, secret: bytes = SECRET, token: bytes = TOKEN) -> Stream:
        return await asyncio.to_thread(connect, self.order(secret, token))

    def close(self) -> None:
        for sock in self.came:
            sock.close()
        self.listener.close()


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    port = Port()
    yield port
    port.close()


async def closed(sock: socket.socket) -> bool:
    """Whether the other side closes a connection, whatever it says before."""
    sock.settimeout(10.0)

    def read() -> bool:
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            return True
        return True

    return await asyncio.to_thread(read)


async def test_a_worker_with_the_secret_is_let_in_once(port: Port) -> None:
    with contextlib.closing(await port.connect()) as sock:
        await until(lambda: port.came)
        sock.sendall(b"first frame")
        assert await asyncio.get_running_loop().sock_recv(port.came[0], 100) == b"first frame"
        with pytest.raises(HandshakeError):
            await port.connect()
        assert len(port.came) == 1


@pytest.mark.parametrize("wrong", ["secret", "token"])
async def test_with_a_wrong_secret_or_token_nobody_is(port: Port, wrong: str) -> None:
    with pytest.raises(HandshakeError, match="closed the connection"):
        await port.connect(**{wrong: b"x" * len(SECRET if wrong == "secret" else TOKEN)})
    assert not port.came
    # The one that is expected still is.
    (await port.connect()).close()
    await until(lambda: port.came)


def evil(path: Path) -> bytes:
    return pickle.dumps(Touch(path))


@pytest.mark.parametrize("kind", ["pickle", "frame", "zeros", "right size"])
async def test_garbage_never_reaches_pickle(port: Port, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    data = {
        "pickle": evil(path) * 20,
        "frame": frames.encode_results(Results((1,), (200,), (evil(path),), 0.0)) * 20,
        "zeros": bytes(4096),
        "right size": evil(path).ljust(handshake.CLAIM_SIZE, b"\0")[: handshake.CLAIM_SIZE],
    }[kind]
    with socket.create_connection(port.address) as sock:
        sock.sendall(data)
        assert await closed(sock)
    assert not port.came
    assert not path.exists()
    # It would have been made by whoever had read it.
    pickle.loads(evil(path))
    assert path.exists()


async def test_one_that_says_nothing_is_closed_after_a_while() -> None:
    port = Port(seconds=0.05)
    with socket.create_connection(port.address) as sock:
        assert await closed(sock)
    assert port.listener.unproved == 0
    port.close()


async def test_many_that_say_nothing_do_not_keep_a_worker_out() -> None:
    port = Port(most_unproved=3)
    silent = [socket.create_connection(port.address) for _ in range(10)]
    (await port.connect()).close()
    await until(lambda: port.came)
    await until(lambda: port.listener.unproved <= 3)
    # The first have given way.
    assert await closed(silent[0])
    port.close()
    for sock in silent:
        sock.close()


async def test_a_server_without_the_secret_is_refused() -> None:
    port = Port()
    port.listener.expect(TOKEN, Expected(b"x" * handshake.SECRET_SIZE, lambda sock, host: None))
    # It has no right proof, and would not get that far: here it pretends.
    loop = asyncio.get_running_loop()
    false = socket.create_server(("127.0.0.1", 0))
    false.setblocking(False)

    async def pretend() -> None:
        sock, _ = await loop.sock_accept(false)
        await loop.sock_sendall(sock, handshake.greeting(b"n" * handshake.NONCE_SIZE))
        await loop.sock_recv(sock, handshake.CLAIM_SIZE)
        await loop.sock_sendall(sock, b"p" * handshake.PROOF_SIZE)
        sock.close()

    pretending = loop.create_task(pretend())
    order = port.order()._replace(address=false.getsockname())
    with pytest.raises(HandshakeError, match="does not have the secret"):
        await asyncio.to_thread(connect, order)
    await pretending
    false.close()
    port.close()


async def test_it_listens_where_it_is_told_and_nowhere_else(port: Port) -> None:
    assert port.address[0] == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port.address[1]))


async def test_nothing_is_open_after_close(port: Port) -> None:
    with socket.create_connection(port.address) as sock:
        await until(lambda: port.listener.unproved == 1)
        port.listener.close()
        assert await closed(sock)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(port.address)


async def test_a_worker_that_has_just_proved_itself_when_the_listener_closes_is_closed(port: Port) -> None:
    connecting = asyncio.ensure_future(port.connect())
    # Its token is used up in the last step of the handshake, and it is handed over in a later turn.
    while TOKEN in port.listener._expected:
        tasks = list(port.listener._unproved)
        await asyncio.sleep(0)
    port.listener.close()
    await asyncio.wait(tasks)
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert not port.came
    with contextlib.suppress(HandshakeError, OSError):
        (await connecting).close()
